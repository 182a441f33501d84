// Package strictyaml reads YAML into Go types, strictly: every error says line and column, and what to write instead.
//
// Fields are named by their JSON tags, so that YAML and JSON cannot differ. What is not known, stands there twice or has another type is
// refused; so are tags and merge keys. A value that has a text form of its own reads itself ([encoding.TextUnmarshaler]).
//
// What is read may come from anybody: it is never executed, and neither aliases nor depth can make it grow without bounds. Start with [Documents] and [Decoder].
package strictyaml

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark"
)

// Decoder fills our types from YAML nodes. The library's own decoder is not used, because its errors name no columns, it takes on for
// true, and ignores strictness below custom types.
//
// The zero value reads no aliases. A Decoder is used by one goroutine.
type Decoder struct {
	// MaxAliases is how many aliases may be followed, in all that it reads.
	MaxAliases int

	places  map[string]Place // where each field of the document stands
	aliases int
	depth   int
}

// maxDepth bounds how deep values may be in each other, where types name themselves.
const maxDepth = 32

// Either is a value that is written as one text or as a list of them.
type Either interface {
	// FromText takes one text.
	FromText(text string) error
	// FromList takes a list of texts.
	FromList(texts []string) error
}

// Field is one field of a struct.
type Field struct {
	Name  string // of its JSON tag
	Index int
}

// Fields lists the fields of a struct, by their JSON names.
func Fields(t reflect.Type) (list []Field) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		list = append(list, Field{name, i})
	}
	return list
}

// Decode reads a document into a struct, given as a pointer. The keys of skip are left out: they were read before.
func (d *Decoder) Decode(root *yaml.Node, into any, skip ...string) error {
	d.places = map[string]Place{}
	if root.Kind != yaml.MappingNode {
		return Wrong(root, "write NAME: VALUE lines", "this is not a document of fields")
	}
	return d.fields(root, reflect.ValueOf(into).Elem(), "", skip...)
}

// fields reads a mapping into a struct. path leads to it; the keys of skip were read before.
func (d *Decoder) fields(n *yaml.Node, v reflect.Value, path string, skip ...string) error {
	known := Fields(v.Type())
	return d.mapping(n, path, func(key, value *yaml.Node, path string) error {
		if slices.Contains(skip, key.Value) {
			return nil
		}
		i := slices.IndexFunc(known, func(f Field) bool { return f.Name == key.Value })
		if i < 0 {
			return Wrong(key, hintFor(key.Value, known), "there is no field %.60q here", key.Value)
		}
		return d.value(value, v.Field(known[i].Index), path)
	})
}

// mapping calls fn for each pair of a mapping. Keys are plain text, and each stands there once.
func (d *Decoder) mapping(n *yaml.Node, path string, fn func(key, value *yaml.Node, path string) error) error {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Style&yaml.TaggedStyle != 0:
			return Wrong(key, "write names, and values behind ':'", "this is not the name of a field")
		case key.Tag == "!!merge":
			return Wrong(key, "write the fields out, or alias single values", "merge keys are not read here")
		case seen[key.Value] > 0:
			return Wrong(key, "leave one of them away", "%.60q stands here again; it was given on line %d", key.Value, seen[key.Value])
		}
		seen[key.Value] = key.Line
		sub := key.Value
		if path != "" {
			sub = path + "." + key.Value
		}
		d.places[sub] = Place{value.Line, value.Column}
		if err := fn(key, value, sub); err != nil {
			return err
		}
	}
	return nil
}

// value reads a node into v.
func (d *Decoder) value(n *yaml.Node, v reflect.Value, path string) error {
	if d.depth++; d.depth > maxDepth {
		return Wrong(n, "write it flatter", "there are more than %d things in each other", maxDepth)
	}
	defer func() { d.depth-- }()
	n, err := d.resolve(n)
	if err != nil {
		return err
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if e, ok := v.Addr().Interface().(Either); ok {
		return d.either(n, e, path)
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.scalar(n, v, path)
	}
	switch v.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			return Wrong(n, "write its fields below it, indented", "%s has fields, and no value of its own", path)
		}
		return d.fields(n, v, path)
	case reflect.Slice:
		return d.list(n, v, path)
	case reflect.Map:
		return d.pairs(n, v, path)
	}
	return d.scalar(n, v, path)
}

// resolve follows an alias, and refuses what is not read anywhere.
func (d *Decoder) resolve(n *yaml.Node) (*yaml.Node, error) {
	if n.Kind == yaml.AliasNode {
		if d.aliases++; d.aliases > d.MaxAliases {
			return nil, Wrong(n, "write the values out", "there are more than %d aliases", d.MaxAliases)
		}
		at := *n.Alias
		at.Line, at.Column = n.Line, n.Column
		n = &at
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return nil, Wrong(n, "leave it away", "tags such as %.40s are not read here", n.Tag)
	}
	return n, nil
}

// IsNull reports whether a node is an empty value.
func IsNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// either reads one text, or a list of them. Numbers and the like are taken as they are written.
func (d *Decoder) either(n *yaml.Node, e Either, path string) error {
	if n.Kind != yaml.SequenceNode {
		var text string
		if err := d.text(n, &text, path); err != nil {
			return err
		}
		return asWrong(n, path, e.FromText(text))
	}
	texts := make([]string, len(n.Content))
	for i, c := range n.Content {
		c, err := d.resolve(c)
		if err != nil {
			return err
		}
		if err := d.text(c, &texts[i], fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	return asWrong(n, path, e.FromList(texts))
}

// text reads any single value as it is written.
func (d *Decoder) text(n *yaml.Node, text *string, path string) error {
	if n.Kind != yaml.ScalarNode || IsNull(n) {
		return Wrong(n, `write text, or "" for none`, "%.80s is text", path)
	}
	*text = n.Value
	return nil
}

func (d *Decoder) list(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.SequenceNode {
		return Wrong(n, fmt.Sprintf("put it into brackets: [%.40s]", n.Value), "%s is a list", path)
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.places[sub] = Place{e.Line, e.Column}
		if err := d.value(e, v.Index(i), sub); err != nil {
			return err
		}
	}
	return nil
}

// pairs reads a map of texts. Numbers and the like are taken as they are written.
func (d *Decoder) pairs(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return Wrong(n, "write NAME: VALUE pairs below it, indented", "%s has pairs of names and values", path)
	}
	m := map[string]string{}
	v.Set(reflect.ValueOf(m))
	return d.mapping(n, path, func(key, value *yaml.Node, path string) error {
		value, err := d.resolve(value)
		if err != nil {
			return err
		}
		var text string
		err = d.text(value, &text, path)
		m[key.Value] = text
		return err
	})
}

func (d *Decoder) scalar(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.ScalarNode {
		return Wrong(n, "write it behind the ':'", "%s is a single value", path)
	}
	if IsNull(n) {
		return Wrong(n, "give it a value, or leave the line away", "%s is empty", path)
	}
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return asWrong(n, path, t.UnmarshalText([]byte(n.Value)))
	}
	switch v.Kind() {
	case reflect.String:
		if n.Tag != "!!str" {
			return Wrong(n, fmt.Sprintf("put it into quotes: %.60q", n.Value), "%s is text, and %.40s is read as something else", path, n.Value)
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" || n.Tag != "!!bool" {
			return Wrong(n, "write true or false", "%s is true or false, and not %.40q", path, n.Value)
		}
		v.SetBool(n.Value == "true")
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if err != nil || n.Tag != "!!int" || strconv.Itoa(i) != n.Value {
			return Wrong(n, "write a number such as 7", "%s is a whole number, and not %.40q", path, n.Value)
		}
		v.SetInt(int64(i))
	default:
		return tidemark.Errorf(tidemark.Internal, "%s: nothing reads a %s", path, v.Type())
	}
	return nil
}

// asWrong gives the error of a scalar's parser its place.
func asWrong(n *yaml.Node, path string, err error) error {
	var e *tidemark.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return Wrong(n, e.Hint, "%s: %s", path, e.Message)
	}
	return Wrong(n, "", "%s: %v", path, err)
}

// hintFor names the field that was probably meant, or all of them.
func hintFor(key string, known []Field) string {
	best, least := "", 3
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.Name
		if n := distance(key, f.Name); n < least && n < len(f.Name) {
			best, least = f.Name, n
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "there are " + strings.Join(names, ", ")
}

// distance is how many letters have to be put in, left out or changed to make b of a (Levenshtein); 99 for long ones.
func distance(a, b string) int {
	if len(a) > 32 || len(b) > 32 {
		return 99
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

package policy

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

// decoder fills our types from YAML nodes by the names of their JSON tags, so that YAML
// and JSON cannot differ. The library's own decoder is not used, because its errors name
// no columns, it takes on for true, and ignores strictness below custom types.
//
// It goes down the types, not the nodes: whatever the nodes are, it is no deeper than a Template.
type decoder struct {
	places  map[string]place // where each field of the document stands
	aliases int
}

// field is one field of a struct.
type field struct {
	name  string
	index int
}

// fieldsOf lists the fields of a struct, by their JSON names.
func fieldsOf(t reflect.Type) (list []field) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		list = append(list, field{name, i})
	}
	return list
}

// object reads a document, whose kind was read before.
func (d *decoder) object(root *yaml.Node, o object) error {
	return d.fields(root, reflect.ValueOf(o).Elem(), "", "kind")
}

// fields reads a mapping into a struct. path leads to it; the keys of skip were read before.
func (d *decoder) fields(n *yaml.Node, v reflect.Value, path string, skip ...string) error {
	known := fieldsOf(v.Type())
	return d.mapping(n, path, func(key, value *yaml.Node, path string) error {
		if slices.Contains(skip, key.Value) {
			return nil
		}
		i := slices.IndexFunc(known, func(f field) bool { return f.name == key.Value })
		if i < 0 {
			return wrong(key, hintFor(key.Value, known), "there is no field %.60q here", key.Value)
		}
		return d.value(value, v.Field(known[i].index), path)
	})
}

// mapping calls fn for each pair of a mapping. Keys are plain text, and each stands there once.
func (d *decoder) mapping(n *yaml.Node, path string, fn func(key, value *yaml.Node, path string) error) error {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Style&yaml.TaggedStyle != 0:
			return wrong(key, "write names, and values behind ':'", "this is not the name of a field")
		case key.Tag == "!!merge":
			return wrong(key, "write the fields out, or alias single values", "merge keys are not read here")
		case seen[key.Value] > 0:
			return wrong(key, "leave one of them away", "%.60q stands here again; it was given on line %d", key.Value, seen[key.Value])
		}
		seen[key.Value] = key.Line
		sub := key.Value
		if path != "" {
			sub = path + "." + key.Value
		}
		d.places[sub] = place{value.Line, value.Column}
		if err := fn(key, value, sub); err != nil {
			return err
		}
	}
	return nil
}

// value reads a node into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) error {
	n, err := d.resolve(n)
	if err != nil {
		return err
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.scalar(n, v, path)
	}
	switch v.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			return wrong(n, "write its fields below it, indented", "%s has fields, and no value of its own", path)
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
func (d *decoder) resolve(n *yaml.Node) (*yaml.Node, error) {
	if n.Kind == yaml.AliasNode {
		if d.aliases++; d.aliases > MaxAliases {
			return nil, wrong(n, "write the values out", "there are more than %d aliases", MaxAliases)
		}
		at := *n.Alias
		at.Line, at.Column = n.Line, n.Column
		n = &at
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return nil, wrong(n, "leave it away", "tags such as %.40s are not read here", n.Tag)
	}
	return n, nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.SequenceNode {
		return wrong(n, fmt.Sprintf("put it into brackets: [%.40s]", n.Value), "%s is a list", path)
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.places[sub] = place{e.Line, e.Column}
		if err := d.value(e, v.Index(i), sub); err != nil {
			return err
		}
	}
	return nil
}

// pairs reads a map of texts. Numbers and the like are taken as they are written.
func (d *decoder) pairs(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return wrong(n, "write NAME: VALUE pairs below it, indented", "%s has pairs of names and values", path)
	}
	m := map[string]string{}
	v.Set(reflect.ValueOf(m))
	return d.mapping(n, path, func(key, value *yaml.Node, path string) error {
		value, err := d.resolve(value)
		if err != nil {
			return err
		}
		if value.Kind != yaml.ScalarNode || isNull(value) {
			return wrong(value, `write text, or "" for none`, "%.80s is text", path)
		}
		m[key.Value] = value.Value
		return nil
	})
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.ScalarNode {
		return wrong(n, "write it behind the ':'", "%s is a single value", path)
	}
	if isNull(n) {
		return wrong(n, "give it a value, or leave the line away", "%s is empty", path)
	}
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return asWrong(n, path, t.UnmarshalText([]byte(n.Value)))
	}
	switch v.Kind() {
	case reflect.String:
		if n.Tag != "!!str" {
			return wrong(n, fmt.Sprintf("put it into quotes: %.60q", n.Value), "%s is text, and %.40s is read as something else", path, n.Value)
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" || n.Tag != "!!bool" {
			return wrong(n, "write true or false", "%s is true or false, and not %.40q", path, n.Value)
		}
		v.SetBool(n.Value == "true")
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if err != nil || n.Tag != "!!int" || strconv.Itoa(i) != n.Value {
			return wrong(n, "write a number such as 7", "%s is a whole number, and not %.40q", path, n.Value)
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
		return wrong(n, e.Hint, "%s: %s", path, e.Message)
	}
	return wrong(n, "", "%s: %v", path, err)
}

// hintFor names the field that was probably meant, or all of them.
func hintFor(key string, known []field) string {
	best, least := "", 3
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
		if n := distance(key, f.name); n < least && n < len(f.name) {
			best, least = f.name, n
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

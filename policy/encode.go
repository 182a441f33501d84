package policy

import (
	"bytes"
	"encoding"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// Marshal writes a set as [Parse] reads it: a document for each, hosts and templates before
// those that name them, each kind by name. The same set is always the same bytes.
func Marshal(s Set) ([]byte, error) {
	var out bytes.Buffer
	if len(s.all()) == 0 {
		return nil, nil // a stream of no documents cannot be closed
	}
	dumper, err := yaml.NewDumper(&out, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Internal, "cannot write YAML: %w", err)
	}
	for _, n := range s.all() {
		root := encodeValue(reflect.ValueOf(n.object).Elem())
		root.Content = slices.Insert(root.Content, 0, text("kind"), text(string(n.kind)))
		if err := dumper.Dump(root); err != nil {
			return nil, tidemark.Errorf(tidemark.Internal, "cannot write %s %s as YAML: %w", n.kind, n.name, err)
		}
	}
	if err := dumper.Close(); err != nil {
		return nil, tidemark.Errorf(tidemark.Internal, "cannot write YAML: %w", err)
	}
	return out.Bytes(), nil
}

// encodeValue makes the node of a value, by the same names as the decoder.
func encodeValue(v reflect.Value) *yaml.Node {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, _ := m.MarshalText() // those of our scalars cannot fail
		return text(string(b))
	}
	switch v.Kind() {
	case reflect.Struct:
		return encodeStruct(v)
	case reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
		for i := range v.Len() {
			list.Content = append(list.Content, encodeValue(v.Index(i)))
		}
		return list
	case reflect.Map:
		pairs := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		m := v.Interface().(map[string]string)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			pairs.Content = append(pairs.Content, text(key), text(m[key]))
		}
		return pairs
	case reflect.Int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	}
	return text(v.String())
}

func encodeStruct(v reflect.Value) *yaml.Node {
	fields := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, f := range strictyaml.Fields(v.Type()) {
		fv := v.Field(f.Index)
		tag := v.Type().Field(f.Index).Tag.Get("json")
		if strings.Contains(tag, ",omit") && (fv.IsZero() || fv.Kind() == reflect.Slice && fv.Len() == 0 || fv.Kind() == reflect.Map && fv.Len() == 0) {
			continue
		}
		fields.Content = append(fields.Content, text(f.Name), encodeValue(fv))
	}
	return fields
}

// text is a node of text. Times of day are quoted, because YAML 1.1 reads 02:30 as a number of base 60.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if _, isTime := clock(s); isTime {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

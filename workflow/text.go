package workflow

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// text is one text of a body, with the name of its field.
type text struct {
	name string
	text *string
	put  func() // puts a changed text back where it is
}

// textsOf lists the texts of a body that parameters may stand in.
func textsOf(b Body) (list []text) {
	v := reflect.ValueOf(b).Elem()
	for _, f := range strictyaml.Fields(v.Type()) {
		switch x := v.Field(f.Index).Addr().Interface().(type) {
		case *string:
			list = append(list, text{f.Name, x, func() {}})
		case *map[string]string:
			for _, key := range slices.Sorted(maps.Keys(*x)) {
				value := (*x)[key]
				list = append(list, text{f.Name + "." + key, &value, func() { (*x)[key] = value }})
			}
		}
	}
	return list
}

// copyOf is a body whose texts can be filled in without a change of b.
func copyOf(b Body) Body {
	v := reflect.New(reflect.TypeOf(b).Elem())
	v.Elem().Set(reflect.ValueOf(b).Elem())
	for _, f := range strictyaml.Fields(v.Elem().Type()) {
		if m, ok := v.Elem().Field(f.Index).Addr().Interface().(*map[string]string); ok && *m != nil {
			*m = maps.Clone(*m)
		}
	}
	return v.Interface().(Body)
}

// fill puts values where a text names parameters. What is put in is not looked at again.
func fill(s string, value func(name string) (string, error)) (string, error) {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "{{")
		out.WriteString(before)
		if !ok {
			break
		}
		name, after, closed := strings.Cut(rest, "}}")
		if !closed {
			return "", tidemark.Errorf(tidemark.Invalid, "it has {{ without }}").WithHint("write {{ NAME }}")
		}
		v, err := value(strings.TrimSpace(name))
		if err != nil {
			return "", err
		}
		out.WriteString(v)
		s = after
		if out.Len() > maxText {
			return "", tidemark.Errorf(tidemark.Invalid, "a text is too long, with its values in it").WithHint(fmt.Sprintf("at most %d bytes are allowed", maxText))
		}
	}
	return out.String(), nil
}

// checkTemplate refuses a text that names something that is not known, or a list.
func checkTemplate(s string, known scope) error {
	_, err := fill(s, func(name string) (string, error) {
		list, ok := known[name]
		switch {
		case !paramName.MatchString(name): // it may be the rest of a URL, and is not repeated
			return "", tidemark.Errorf(tidemark.Invalid, "what is between {{ and }} is no name of a parameter").WithHint("write {{ NAME }}")
		case !ok:
			return "", tidemark.Errorf(tidemark.Invalid, "there is no parameter %.40q here", name).WithHint("write it below parameters:, or correct the name")
		case list:
			return "", tidemark.Errorf(tidemark.Invalid, "%s is a list", name).WithHint("use it with for_each")
		}
		return "", nil
	})
	return err
}

// only returns the name in a text that is nothing but {{ NAME }}.
func only(s string) (name string, ok bool) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "{{") || !strings.HasSuffix(s, "}}") {
		return "", false
	}
	name = strings.TrimSpace(s[2 : len(s)-2])
	return name, paramName.MatchString(name)
}

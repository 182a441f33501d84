package strictyaml

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark"
)

// Place is where something stands in a stream.
type Place struct{ Line, Column int }

// Fault is what is wrong with a field that could be read. [Decoder.Locate] adds where it stands.
type Fault struct {
	Field string // its path, such as capture.at[0]
	Err   *tidemark.Error
}

// Error is that of the error, which names the field.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap returns the error without the field as such.
func (f *Fault) Unwrap() error { return f.Err }

// Checks collects the first fault of something that was read.
type Checks struct{ First *Fault }

// That takes a fault with a field up, unless ok, or there was one before. Its message begins with the field.
func (c *Checks) That(ok bool, field, hint, format string, args ...any) {
	if !ok && c.First == nil {
		c.First = &Fault{field, tidemark.Errorf(tidemark.Invalid, "%s: "+format, append([]any{field}, args...)...).WithHint(hint)}
	}
}

// Good takes err up as a fault with a field, unless it is nil.
func (c *Checks) Good(field string, err error) {
	if err == nil || c.First != nil {
		return
	}
	e := tidemark.Error{Kind: tidemark.Invalid, Message: err.Error()}
	if told := (*tidemark.Error)(nil); errors.As(err, &told) {
		e = *told
	}
	e.Message = field + ": " + e.Message
	c.First = &Fault{field, &e}
}

// Name takes it up as a fault that a field is no name: see [tidemark.CheckName].
func (c *Checks) Name(field, name string) { c.Good(field, tidemark.CheckName(name)) }

// Bookmark takes it up as a fault that a field cannot name a new bookmark: see [tidemark.CheckBookmark].
func (c *Checks) Bookmark(field, name string) { c.Good(field, tidemark.CheckBookmark(name)) }

// Err is the first fault as an error, or nil.
func (c *Checks) Err() error {
	if c.First == nil {
		return nil
	}
	return c.First
}

// Wrong is the error about something at a node.
func Wrong(n *yaml.Node, hint, format string, args ...any) error {
	return wrongAt(Place{n.Line, n.Column}, hint, format, args...)
}

func wrongAt(at Place, hint, format string, args ...any) error {
	return tidemark.Errorf(tidemark.Invalid, "line %d, column %d: %s", at.Line, at.Column, fmt.Sprintf(format, args...)).WithHint(hint)
}

// Syntax says what the library found, and where.
func Syntax(err error) error {
	hint := "indent with spaces, put a space behind ':' and '-', and quotes around text with ':' or '#' in it"
	var load *yaml.LoadError
	if !errors.As(err, &load) {
		return tidemark.Errorf(tidemark.Invalid, "this is not YAML: %w", err).WithHint(hint)
	}
	at := Place{load.Mark.Line, load.Mark.Column}
	if at.Line == 0 {
		at = Place{cmp.Or(load.ContextMark.Line, 1), cmp.Or(load.ContextMark.Column, 1)}
	}
	return wrongAt(at, hint, "this is not YAML: %s", strings.TrimSpace(load.ContextMsg+" "+load.Message))
}

// Locate adds to an error that is a [Fault] where its field stands: the field itself, or what it should be in.
func (d *Decoder) Locate(root *yaml.Node, err error) error {
	var f *Fault
	if !errors.As(err, &f) {
		return err
	}
	for field := f.Field; ; {
		if at, ok := d.places[field]; ok {
			return wrongAt(at, f.Err.Hint, "%s", f.Err.Message)
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			return Wrong(root, f.Err.Hint, "%s", f.Err.Message)
		}
		field = field[:i]
	}
}

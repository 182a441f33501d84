package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark"
)

// Limits of what [Parse] reads: far above what a site has, far below what would be felt.
const (
	MaxBytes     = 4 << 20 // of a stream
	MaxDocuments = 10_000
	MaxAliases   = 1_000 // in a stream
)

// place is where something stands in a stream.
type place struct{ line, column int }

// Parse reads a stream of YAML documents, separated by ---, each with kind: Template,
// Application, Host or Group. JSON is YAML, and so is read, too. All of it is strict: an error, of kind
// [tidemark.Invalid], begins with line and column, and says what to write instead.
// Names are unique within a kind. Nothing is looked up: see [CheckReferences].
//
// What is read is never executed. Aliases are read, up to [MaxAliases] of them, and
// cannot grow without bounds, because all that is read has a fixed depth. Merge keys and
// tags are refused.
func Parse(data []byte) (Set, error) {
	if len(data) > MaxBytes {
		return Set{}, tidemark.Errorf(tidemark.Invalid, "the documents are %d bytes long", len(data)).
			WithHint(fmt.Sprintf("split them: at most %s are read at once", tidemark.FormatSize(MaxBytes)))
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return Set{}, tidemark.Errorf(tidemark.Internal, "cannot read YAML: %w", err)
	}
	p := parser{seen: map[string]place{}}
	for n := 0; ; n++ {
		var doc yaml.Node
		switch err := loader.Load(&doc); {
		case errors.Is(err, io.EOF):
			return p.set, nil
		case err != nil:
			return Set{}, syntaxError(err)
		case n == MaxDocuments:
			return Set{}, wrong(&doc, fmt.Sprintf("at most %d are read at once", MaxDocuments), "there are too many documents")
		}
		if err := p.document(&doc); err != nil {
			return Set{}, err
		}
	}
}

// parser reads one stream.
type parser struct {
	set    Set
	seen   map[string]place // kind and name of what was read
	decode decoder
}

func (p *parser) document(doc *yaml.Node) error {
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil // nothing between two ---
	}
	root := doc.Content[0]
	kind, err := kindOf(root)
	if err != nil {
		return err
	}
	o := newObject(kind)
	p.decode.places = map[string]place{}
	if err := p.decode.object(root, o); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return p.decode.locate(root, err)
	}
	return p.add(root, kind, o)
}

// add takes an object up, unless there was one of the same name.
func (p *parser) add(root *yaml.Node, kind DocumentKind, o object) error {
	var one Set
	one.add(o)
	name := one.all()[0].name
	key := string(kind) + " " + name
	if first, ok := p.seen[key]; ok {
		return wrong(root, "leave one of them away", "%s stands here again; it was described on line %d", key, first.line)
	}
	p.seen[key] = place{root.Line, root.Column}
	p.set.add(o)
	return nil
}

// kindOf finds the kind of a document before the rest is read.
func kindOf(root *yaml.Node) (DocumentKind, error) {
	hint := "begin it with kind: Template, Application, Host or Group, and name: NAME"
	if root.Kind != yaml.MappingNode {
		return "", wrong(root, hint, "this is not a document of fields")
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if key, value := root.Content[i], root.Content[i+1]; key.Value == "kind" {
			if kind := DocumentKind(value.Value); value.Kind == yaml.ScalarNode && newObject(kind) != nil {
				return kind, nil
			}
			return "", wrong(value, "there are Template, Application, Host and Group", "%.40q is not a kind of document", value.Value)
		}
	}
	return "", wrong(root, hint, "the document does not say its kind")
}

// wrong is the error about something at a node.
func wrong(n *yaml.Node, hint, format string, args ...any) error {
	return wrongAt(place{n.Line, n.Column}, hint, format, args...)
}

func wrongAt(at place, hint, format string, args ...any) error {
	return tidemark.Errorf(tidemark.Invalid, "line %d, column %d: %s", at.line, at.column, fmt.Sprintf(format, args...)).WithHint(hint)
}

// syntaxError says what the library found, and where.
func syntaxError(err error) error {
	hint := "indent with spaces, put a space behind ':' and '-', and quotes around text with ':' or '#' in it"
	var load *yaml.LoadError
	if !errors.As(err, &load) {
		return tidemark.Errorf(tidemark.Invalid, "this is not YAML: %w", err).WithHint(hint)
	}
	at := place{load.Mark.Line, load.Mark.Column}
	if at.line == 0 {
		at = place{cmp.Or(load.ContextMark.Line, 1), cmp.Or(load.ContextMark.Column, 1)}
	}
	return wrongAt(at, hint, "this is not YAML: %s", strings.TrimSpace(load.ContextMsg+" "+load.Message))
}

// locate adds to an error of Validate where its field stands: the field itself, or what it should be in.
func (d *decoder) locate(root *yaml.Node, err error) error {
	var f *fault
	if !errors.As(err, &f) {
		return err
	}
	for field := f.field; ; {
		if at, ok := d.places[field]; ok {
			return wrongAt(at, f.err.Hint, "%s", f.err.Message)
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			return wrong(root, f.err.Hint, "%s", f.err.Message)
		}
		field = field[:i]
	}
}

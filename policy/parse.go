package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v4"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// Limits of what [Parse] reads: far above what a site has, far below what would be felt.
const (
	MaxBytes     = 4 << 20 // of a stream
	MaxDocuments = 10_000
	MaxAliases   = 1_000 // in a stream
)

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
	p := parser{seen: map[string]strictyaml.Place{}, decode: strictyaml.Decoder{MaxAliases: MaxAliases}}
	for n := 0; ; n++ {
		var doc yaml.Node
		switch err := loader.Load(&doc); {
		case errors.Is(err, io.EOF):
			return p.set, nil
		case err != nil:
			return Set{}, strictyaml.Syntax(err)
		case n == MaxDocuments:
			return Set{}, strictyaml.Wrong(&doc, fmt.Sprintf("at most %d are read at once", MaxDocuments), "there are too many documents")
		}
		if err := p.document(&doc); err != nil {
			return Set{}, err
		}
	}
}

// parser reads one stream.
type parser struct {
	set    Set
	seen   map[string]strictyaml.Place // kind and name of what was read
	decode strictyaml.Decoder
}

func (p *parser) document(doc *yaml.Node) error {
	if len(doc.Content) == 0 || strictyaml.IsNull(doc.Content[0]) {
		return nil // nothing between two ---
	}
	root := doc.Content[0]
	kind, err := kindOf(root)
	if err != nil {
		return err
	}
	o := newObject(kind)
	if err := p.decode.Decode(root, o, "kind"); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return p.decode.Locate(root, err)
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
		return strictyaml.Wrong(root, "leave one of them away", "%s stands here again; it was described on line %d", key, first.Line)
	}
	p.seen[key] = strictyaml.Place{Line: root.Line, Column: root.Column}
	p.set.add(o)
	return nil
}

// kindOf finds the kind of a document before the rest is read.
func kindOf(root *yaml.Node) (DocumentKind, error) {
	hint := "begin it with kind: Template, Application, Host or Group, and name: NAME"
	if root.Kind != yaml.MappingNode {
		return "", strictyaml.Wrong(root, hint, "this is not a document of fields")
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if key, value := root.Content[i], root.Content[i+1]; key.Value == "kind" {
			if kind := DocumentKind(value.Value); value.Kind == yaml.ScalarNode && newObject(kind) != nil {
				return kind, nil
			}
			return "", strictyaml.Wrong(value, "there are Template, Application, Host and Group", "%.40q is not a kind of document", value.Value)
		}
	}
	return "", strictyaml.Wrong(root, hint, "the document does not say its kind")
}

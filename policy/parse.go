package policy

import (
	"fmt"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// Limits of what [Parse] reads: far above what a site has, far below what would be felt.
const (
	MaxBytes     = 4 << 20 // of a stream
	MaxDocuments = 10_000
	MaxAliases   = 1_000 // in a stream
)

// Other reads the documents of a kind that is none of this package's.
type Other struct {
	Kind DocumentKind
	// Read takes one document up, and returns its name.
	Read func(strictyaml.Document) (name string, err error)
}

// Parse reads a stream of YAML documents, separated by ---, each with kind: Template, Profile,
// Application, Host or Group, or one of others. JSON is YAML, and so is read, too. All of it is strict: an error, of kind
// [tidemark.Invalid], begins with line and column, and says what to write instead.
// Names are unique within a kind. Nothing is looked up: see [CheckReferences].
//
// What is read is never executed. Aliases are read, up to [MaxAliases] of them, and
// cannot grow without bounds, because all that is read has a fixed depth. Merge keys and
// tags are refused.
func Parse(data []byte, others ...Other) (Set, error) {
	if len(data) > MaxBytes {
		return Set{}, tidemark.Errorf(tidemark.Invalid, "the documents are %d bytes long", len(data)).
			WithHint(fmt.Sprintf("split them: at most %s are read at once", tidemark.FormatSize(MaxBytes)))
	}
	docs, err := strictyaml.Documents(data, MaxDocuments)
	if err != nil {
		return Set{}, err
	}
	p := parser{known: []string{string(KindTemplate), string(KindProfile), string(KindApplication), string(KindHost), string(KindGroup)}, others: others,
		seen: map[string]strictyaml.Place{}, decode: strictyaml.Decoder{MaxAliases: MaxAliases}}
	for _, o := range others {
		p.known = append(p.known, string(o.Kind))
	}
	for _, doc := range docs {
		if err := p.document(doc); err != nil {
			return Set{}, err
		}
	}
	return p.set, nil
}

// parser reads one stream.
type parser struct {
	known  []string // the kinds, in the order in which they are told
	others []Other
	set    Set
	seen   map[string]strictyaml.Place // kind and name of what was read
	decode strictyaml.Decoder
}

func (p *parser) document(doc strictyaml.Document) error {
	text, err := doc.Kind(p.known...)
	if err != nil {
		return err
	}
	kind := DocumentKind(text)
	for _, other := range p.others {
		if other.Kind == kind {
			name, err := other.Read(doc)
			if err != nil {
				return err
			}
			return p.once(doc, kind, name)
		}
	}
	o := newObject(kind)
	if err := p.decode.Decode(doc.Root, o, "kind"); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return p.decode.Locate(doc.Root, err)
	}
	var one Set
	one.add(o)
	p.set.add(o)
	return p.once(doc, kind, one.all()[0].name)
}

// once refuses a document if there was one of the same kind and name.
func (p *parser) once(doc strictyaml.Document, kind DocumentKind, name string) error {
	key := string(kind) + " " + name
	if first, ok := p.seen[key]; ok {
		return strictyaml.Wrong(doc.Root, "leave one of them away", "%s stands here again; it was described on line %d", key, first.Line)
	}
	p.seen[key] = strictyaml.Place{Line: doc.Root.Line, Column: doc.Root.Column}
	return nil
}

package workflow

import (
	"fmt"

	"tidemark"
	"tidemark/internal/strictyaml"
	"tidemark/policy"
)

// Kind is what documents that describe workflows say that they are.
const Kind policy.DocumentKind = "Workflow"

// Parse reads the only document of a text: see [Read].
func Parse(data []byte) (Workflow, error) {
	doc, err := Single(data)
	if err != nil {
		return Workflow{}, err
	}
	return Read(doc)
}

// Single finds the only document of a text. An error is of kind [tidemark.Invalid].
func Single(data []byte) (strictyaml.Document, error) {
	if len(data) > MaxBytes { // whatever is in it, before it is read
		return strictyaml.Document{}, tidemark.Errorf(tidemark.Invalid, "the workflow is %d bytes long", len(data)).WithHint(atMost)
	}
	docs, err := strictyaml.Documents(data, policy.MaxDocuments)
	switch {
	case err != nil:
		return strictyaml.Document{}, err
	case len(docs) == 0:
		return strictyaml.Document{}, tidemark.Errorf(tidemark.Invalid, "the document is empty").WithHint("begin it with kind: Workflow, and name: NAME")
	case len(docs) > 1:
		return strictyaml.Document{}, strictyaml.Wrong(docs[1].Root, "`tidemark apply -f FILE` takes many, of all kinds", "there are two documents")
	}
	return docs[0], nil
}

var atMost = fmt.Sprintf("at most %s are read", tidemark.FormatSize(MaxBytes))

// Read reads a document with kind: Workflow. All of it is strict: an error, of kind [tidemark.Invalid], begins with line and
// column, and says what to write instead. Aliases, merge keys and tags are refused: for_each is how steps are repeated.
func Read(doc strictyaml.Document) (Workflow, error) {
	if _, err := doc.Kind(string(Kind)); err != nil {
		return Workflow{}, strictyaml.Wrong(doc.Root, "begin it with kind: Workflow, and name: NAME", "this is no workflow")
	}
	if n := len(doc.Text); n > MaxBytes {
		return Workflow{}, strictyaml.Wrong(doc.Root, atMost, "the workflow is %d bytes long", n)
	}
	var d strictyaml.Decoder
	var w Workflow
	if err := d.Decode(doc.Root, &w, "kind"); err != nil {
		return Workflow{}, err
	}
	if err := w.Validate(); err != nil {
		return Workflow{}, d.Locate(doc.Root, err)
	}
	return w, nil
}

package workflow

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v4"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// Parse reads one YAML document with kind: Workflow. All of it is strict: an error, of kind [tidemark.Invalid], begins with line and
// column, and says what to write instead. Aliases, merge keys and tags are refused: for_each is how steps are repeated.
func Parse(data []byte) (Workflow, error) {
	if len(data) > MaxBytes {
		return Workflow{}, tidemark.Errorf(tidemark.Invalid, "the workflow is %d bytes long", len(data)).
			WithHint(fmt.Sprintf("at most %s are read", tidemark.FormatSize(MaxBytes)))
	}
	root, err := load(data)
	if err != nil {
		return Workflow{}, err
	}
	var d strictyaml.Decoder
	if kind := kindOf(root); kind == nil || kind.Value != "Workflow" {
		return Workflow{}, strictyaml.Wrong(root, "begin it with kind: Workflow, and name: NAME", "this is no workflow")
	}
	var w Workflow
	if err := d.Decode(root, &w, "kind"); err != nil {
		return Workflow{}, err
	}
	if err := w.Validate(); err != nil {
		return Workflow{}, d.Locate(root, err)
	}
	return w, nil
}

// load reads the only document of a stream.
func load(data []byte) (root *yaml.Node, err error) {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Internal, "cannot read YAML: %w", err)
	}
	for {
		var doc yaml.Node
		switch err := loader.Load(&doc); {
		case errors.Is(err, io.EOF) && root == nil:
			return nil, tidemark.Errorf(tidemark.Invalid, "the document is empty").WithHint("begin it with kind: Workflow, and name: NAME")
		case errors.Is(err, io.EOF):
			return root, nil
		case err != nil:
			return nil, strictyaml.Syntax(err)
		}
		if len(doc.Content) == 0 || strictyaml.IsNull(doc.Content[0]) {
			continue
		}
		if root != nil {
			return nil, strictyaml.Wrong(doc.Content[0], "write each workflow into a file of its own", "there are two documents")
		}
		root = doc.Content[0]
	}
}

// kindOf finds the kind of a document, or nil.
func kindOf(root *yaml.Node) *yaml.Node {
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == "kind" && root.Content[i+1].Kind == yaml.ScalarNode {
			return root.Content[i+1]
		}
	}
	return nil
}

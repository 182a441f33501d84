package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"tidemark"
)

// Document is one document of fields.
type Document struct {
	// Root is what it says. Places in it are those in the stream.
	Root *yaml.Node
	// Node is the document itself, which has Root and the comments that are about no field.
	Node *yaml.Node
	// Text is how it is written, with its comments and directives, but without the lines and the blank ones that only separate it
	// from others: so it is the same however the document came. Read alone, it is the same document.
	Text string
}

// Documents reads a stream of UTF-8, and returns the documents in it, but for those that say nothing: these count to at most as well.
// Its errors are of kind [tidemark.Invalid], and begin with line and column.
func Documents(data []byte, most int) ([]Document, error) {
	data = bytes.TrimPrefix(data, mark)
	if !utf8.Valid(data) {
		return nil, notUTF8(data)
	}
	lines := linesOf(data)
	if i := slices.IndexFunc(lines, func(line []byte) bool { return bytes.HasPrefix(line, mark) }); i >= 0 { // it would pass for the begin of a document
		return nil, wrongAt(Place{i + 1, 1}, "leave it away: it may begin a file, and no other line", "a byte order mark stands here")
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Internal, "cannot read YAML: %w", err)
	}
	var docs []*yaml.Node
	for {
		doc := new(yaml.Node)
		switch err := loader.Load(doc); {
		case errors.Is(err, io.EOF):
			return said(lines, docs)
		case err != nil:
			return nil, Syntax(err)
		case len(docs) == most:
			return nil, Wrong(doc, fmt.Sprintf("at most %d are read at once", most), "there are too many documents")
		}
		docs = append(docs, doc)
	}
}

// mark is the byte order mark, which some editors begin files with.
var mark = []byte("\ufeff")

// Join makes one stream of files. A document in it has the text that it has in its file.
func Join(files ...string) string {
	var all strings.Builder
	for i, file := range files {
		all.WriteString(strings.TrimPrefix(file, string(mark)))
		if i+1 == len(files) {
			break
		}
		if !strings.HasSuffix(file, "\n") {
			all.WriteByte('\n')
		}
		all.WriteString("...\n") // behind which directives and comments are of the next file, as behind --- they would not be
	}
	return all.String()
}

func notUTF8(data []byte) error {
	good := 0
	for {
		r, size := utf8.DecodeRune(data[good:])
		if r == utf8.RuneError && size <= 1 {
			break
		}
		good += size
	}
	before := linesOf(data[:good])
	last := before[len(before)-1]
	return wrongAt(Place{len(before), utf8.RuneCount(last) + 1}, "save it as UTF-8", "this is not UTF-8")
}

// said are the documents of a stream that say something.
func said(lines [][]byte, docs []*yaml.Node) (list []Document, err error) {
	for i, doc := range docs {
		if len(doc.Content) == 0 || IsNull(doc.Content[0]) {
			continue // nothing between two ---
		}
		root := doc.Content[0]
		switch {
		case root.Kind != yaml.MappingNode: // also because in one that is nothing but text, lines that look like markers may be text
			return nil, Wrong(root, "begin it with kind: KIND, and name: NAME", "this is not a document of fields")
		case lines[root.Line-1][0] == '\t': // which the library takes or not by what stands before
			return nil, Wrong(root, "indent with spaces", "a tab stands before this")
		}
		from, to := 0, len(lines)
		if i > 0 {
			from = docs[i-1].Line - 1
		}
		if i+1 < len(docs) {
			to = docs[i+1].Line - 1
		}
		list = append(list, Document{root, doc, textOf(lines[from:to], doc.Line-1-from, i == 0, root)})
	}
	return list, nil
}

// textOf is the text of a document with a root that begins at the line at: with its directives or marker, or, without these, with what it
// says. What stands before that is of the document before, unless this is the first one, or that one was ended by its own marker.
func textOf(lines [][]byte, at int, first bool, root *yaml.Node) string {
	begin := at
	if first {
		begin = 0
	}
	for i := range at {
		if isMarker(lines[i], "...") {
			begin = i + 1
		}
	}
	text := lines[begin:]
	if end := slices.IndexFunc(lines[at:], func(line []byte) bool { return isMarker(line, "...") }); end >= 0 {
		text = lines[begin : at+end]
	}
	text = withoutBlank(text)
	if isMarker(text[0], "---") && isBlank(text[0][3:]) {
		text = withoutBlank(text[1:])
	}
	if endsInBlock(root, false) { // whose line ends may be of what it says
		return string(bytes.Join(text, nil))
	}
	for isBlank(text[len(text)-1]) {
		text = text[:len(text)-1]
	}
	if last := text[len(text)-1]; breakAt(last) == len(last) {
		text = append(slices.Clone(text), []byte("\n"))
	}
	return string(bytes.Join(text, nil))
}

// linesOf are the lines of a text as YAML has them, each with its end. The last one has none, and may be empty.
func linesOf(data []byte) (lines [][]byte) {
	for {
		at := breakAt(data)
		if at == len(data) {
			return append(lines, data)
		}
		switch {
		case bytes.HasPrefix(data[at:], []byte("\r\n")):
			at += 2
		default:
			_, size := utf8.DecodeRune(data[at:])
			at += size
		}
		lines, data = append(lines, data[:at:at]), data[at:]
	}
}

// breakAt is where a line ends, or the length of a text that is not the end of one.
func breakAt(line []byte) int {
	if at := bytes.IndexAny(line, "\n\r\u0085\u2028\u2029"); at >= 0 {
		return at
	}
	return len(line)
}

// isMarker reports whether a line is a marker of documents, which may have a comment or, if it begins one, something of it behind it.
func isMarker(line []byte, marker string) bool {
	rest, is := bytes.CutPrefix(line, []byte(marker))
	return is && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t' || breakAt(rest) == 0)
}

func isBlank(line []byte) bool { return len(bytes.Trim(line[:breakAt(line)], " \t")) == 0 }

// withoutBlank leaves away the blank lines before a document, which has others.
func withoutBlank(lines [][]byte) [][]byte {
	return lines[slices.IndexFunc(lines, func(line []byte) bool { return !isBlank(line) }):]
}

// endsInBlock reports whether the last that is written of a node is text in a block of lines; before says so of what stands before it.
func endsInBlock(n *yaml.Node, before bool) bool {
	for _, child := range n.Content {
		before = endsInBlock(child, before)
	}
	if len(n.Content) > 0 || IsNull(n) && n.Value == "" { // as the value of a key alone
		return before
	}
	return n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
}

// Kind is the kind that a document says that it is of. It is an error unless that is one of several.
func (d Document) Kind(kinds ...string) (string, error) {
	for i := 0; i+1 < len(d.Root.Content); i += 2 {
		if key, value := d.Root.Content[i], d.Root.Content[i+1]; key.Value == "kind" {
			if value.Kind == yaml.ScalarNode && slices.Contains(kinds, value.Value) {
				return value.Value, nil
			}
			return "", Wrong(value, "there are "+oneOf(kinds, "and"), "%.40q is not a kind of document", value.Value)
		}
	}
	return "", Wrong(d.Root, "begin it with kind: "+oneOf(kinds, "or")+", and name: NAME", "the document does not say its kind")
}

// oneOf lists names, with a word before the last.
func oneOf(names []string, word string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " " + word + " " + names[last]
}

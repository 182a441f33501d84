package strictyaml

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"tidemark"
)

// texts are those of the documents of a stream.
func texts(t *testing.T, stream string) (list []string) {
	t.Helper()
	docs, err := Documents([]byte(stream), 100)
	if err != nil {
		t.Fatalf("%q: %v", stream, err)
	}
	for _, d := range docs {
		list = append(list, d.Text)
	}
	return list
}

// The text of a document is all that is written of it, and nothing of what stands beside it.
func TestTexts(t *testing.T) {
	for _, x := range []struct {
		stream string
		want   []string
	}{
		{"", nil},
		{"# nothing\n---\n---\n# nothing\n", nil},
		{"a: b\n", []string{"a: b\n"}},
		{"a: b", []string{"a: b\n"}},
		{"\ufeffa: b", []string{"a: b\n"}},
		{"\n  \n---\n\na: b\n\n\n", []string{"a: b\n"}},
		{"a: b\n---\nc: d\n", []string{"a: b\n", "c: d\n"}},
		{"a: b\n\n---\n\nc: d\n\n---\n---\ne: f", []string{"a: b\n", "c: d\n", "e: f\n"}},
		// comments
		{"# head\n\n# a\na: b # line\n# foot\n---\n# c\nc: d\n\n# end\n", []string{"# head\n\n# a\na: b # line\n# foot\n", "# c\nc: d\n\n# end\n"}},
		{"a: b\n--- # c\nc: d\n---\t# e\ne: f\n", []string{"a: b\n", "--- # c\nc: d\n", "---\t# e\ne: f\n"}},
		{"# head\n---\na: b\n", []string{"# head\n---\na: b\n"}},
		{"--- \na: b\n--- {c: d}\n--- # e\n\n{e: f}", []string{"a: b\n", "--- {c: d}\n", "--- # e\n\n{e: f}\n"}},
		// what ends a document
		{"a: b\n...\n", []string{"a: b\n"}},
		{"a: b\n...\nc: d\n...\n...\n# e\n\ne: f\n... # over\n# and out\n", []string{"a: b\n", "c: d\n", "# e\n\ne: f\n"}},
		{"# nothing\n...\n# a\na: b\n", []string{"# a\na: b\n"}},
		{"...\n---\na: b\n", []string{"a: b\n"}},
		// directives
		{"%YAML 1.1\n---\na: b\n", []string{"%YAML 1.1\n---\na: b\n"}},
		{"a: b\n...\n# c\n%YAML 1.1\n%TAG ! tag:x,2000:\n---\nc: d\n", []string{"a: b\n", "# c\n%YAML 1.1\n%TAG ! tag:x,2000:\n---\nc: d\n"}},
		// ends of lines
		{"a: b\r\n\r\n---\r\n# c\r\nc: d\r\n\r\n---\re: f\r", []string{"a: b\r\n", "# c\r\nc: d\r\n", "e: f\r"}},
		{"a: b\u2028c: d\u0085---\u2029e: f\n", []string{"a: b\u2028c: d\u0085", "e: f\n"}},
		// what only looks like a marker
		{"a: 'x\n  ---\n %q'\n---\n...c: d\n---e: f\n", []string{"a: 'x\n  ---\n %q'\n", "...c: d\n---e: f\n"}},
		{"a: |\n  ---\n  ...\n---\nb: c\n", []string{"a: |\n  ---\n  ...\n", "b: c\n"}},
		// lines that may be of what is said
		{"a: |+\n  x\n\n\n---\n\nb: |\n  y", []string{"a: |+\n  x\n\n\n", "b: |\n  y"}},
		{"a:\n  ? |\n   x", []string{"a:\n  ? |\n   x"}},
		{"{\"a\":\n\"b\"}\n---\n{\n1: 2\n}", []string{"{\"a\":\n\"b\"}\n", "{\n1: 2\n}\n"}},
	} {
		if got := texts(t, x.stream); !slices.Equal(got, x.want) {
			t.Errorf("%q has %q, and not %q", x.stream, got, x.want)
		}
	}
}

// A file means the same whether it comes alone or behind others.
func TestTextsOfFiles(t *testing.T) {
	files := []string{"a: b", "\ufeffa: b\n", "# head\n\n---\n# c\nc: d\n\n", "%YAML 1.1\n---\ne: f\n...\n", "# nothing\n", "g: >-\n  h\n", "", "\n--- # i\ni: [\n\n]"}
	var alone []string
	for _, f := range files {
		alone = append(alone, texts(t, f)...)
	}
	if got := texts(t, Join(files...)); !slices.Equal(got, alone) {
		t.Errorf("together they are %q, and alone %q", got, alone)
	}
}

func TestDocumentsRefuses(t *testing.T) {
	for stream, want := range map[string]string{
		"a: b\n---\nc: [\n": "line 4, column", "a: b\n%YAML 1.1\n---\nc: d": "line 2, column 1: this is not YAML", "\xff\xfea\x00": "line 1, column 1: this is not UTF-8",
		"a: b\n# \u00e4\r\nö: x\xc3": "line 3, column 5: this is not UTF-8", strings.Repeat("---\n", 101): "line 101, column 1: there are too many documents", "a: \x00": "this is not YAML", "a: b\n---\n- c": "line 3, column 1: this is not a document of fields", "|\n...": "this is not a document of fields", "---\n\t{a: b}": "line 2, column 2: a tab stands before this",
		"a: b\n\ufeff---\nc: d": "line 2, column 1: a byte order mark stands here",
	} {
		docs, err := Documents([]byte(stream), 100)
		if docs != nil || tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, %v, and not %s", stream, docs, err, want)
		}
	}
}

// meaning is what a node says: all but where, and with which comments.
func meaning(n *yaml.Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %d %q &%s", n.Kind, n.Tag, n.Style, n.Value, n.Anchor)
	for _, c := range n.Content {
		fmt.Fprintf(&b, " (%s)", meaning(c))
	}
	return b.String()
}

// FuzzDocuments: the text of each document of a stream is one document, which says what that one does; its own text is no other; and what is
// read of them one after another is what was read of all.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"", "a: b\n---\nc: d\n", "# x\n--- # y\na: |+\n x\n\n...\n%YAML 1.1\n---\n{b: &c d, e: *c}", "a: 'x\r\n\r ---'\r---\u2028b:\n- c\u0085...\n- d", "\ufeff--- >\n x\n--- !t &a\n...\n\ufeff# y\n--- \"\n\"", "? >\n 0", "? a\n: - b\n -\n\t\n---\t\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Documents(data, 100)
		if err != nil {
			if tidemark.KindOf(err) != tidemark.Invalid || docs != nil {
				t.Fatalf("%v, %v", docs, err)
			}
			return
		}
		all := make([]string, len(docs))
		for i, d := range docs {
			alone, err := Documents([]byte(d.Text), 2)
			if err != nil || len(alone) != 1 {
				t.Fatalf("%q has %q, which has %d documents: %v", data, d.Text, len(alone), err)
			}
			if got, want := meaning(alone[0].Root), meaning(d.Root); got != want {
				t.Fatalf("%q has %q, which says\n%s\nand not\n%s", data, d.Text, got, want)
			}
			if alone[0].Text != d.Text {
				t.Fatalf("%q has %q, which has %q", data, d.Text, alone[0].Text)
			}
			all[i] = d.Text
		}
		again, err := Documents([]byte(Join(all...)), 100)
		if err != nil || len(again) != len(docs) {
			t.Fatalf("%q: together again they are %d: %v", all, len(again), err)
		}
	})
}

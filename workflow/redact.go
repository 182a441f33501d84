package workflow

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// The URL that a message is posted to is often all that its receiver asks for: its path is a secret. So are then the values of parameters
// that stand in it.

// Hidden stands for what may be a secret.
const Hidden = "…"

// Redacted is the text of a document for who may not change the workflow: of the URLs that messages are posted to, and of those in
// comments, scheme and host are left, and nothing of the values of parameters that stand in one. A text without such is returned as it
// is, but for what stands beside the document. What is no YAML any more has no text.
func Redacted(document string) string {
	doc, err := Single([]byte(document))
	if err != nil {
		return ""
	}
	r := redaction{}
	r.steps(doc.Root, "")
	for _, p := range fieldsOf(doc.Root, "parameters") {
		for _, entry := range p.Content {
			r.parameter(entry)
		}
	}
	r.comments(doc.Node)
	if !r.changed && !hasLost(doc) {
		return doc.Text
	}
	text, err := yaml.Dump(doc.Node, yaml.WithV3Defaults())
	if err != nil {
		return ""
	}
	return "# who may change workflows is shown the URLs whole\n" + string(text)
}

// redaction is what is taken from one document.
type redaction struct {
	names   []string // of the parameters that stand in URLs
	changed bool
}

// put puts a text in the place of a value or comment.
func (r *redaction) put(at *string, text string) {
	r.changed = r.changed || *at != text
	*at = text
}

// steps takes from all that is below n, which stands in a field, the URLs of messages.
func (r *redaction) steps(n *yaml.Node, field string) {
	if field == "notify" {
		for _, u := range fieldsOf(n, "url") {
			r.names = append(r.names, namesIn(u.Value)...)
			r.put(&u.Value, hostOf(u.Value))
			u.Style = yaml.DoubleQuotedStyle
		}
	}
	for i, child := range n.Content {
		name := ""
		if n.Kind == yaml.MappingNode && i%2 == 1 {
			name = n.Content[i-1].Value
		}
		r.steps(child, name)
	}
}

// parameter takes from a parameter the values that it may have, if it stands in a URL.
func (r *redaction) parameter(p *yaml.Node) {
	if !slices.ContainsFunc(fieldsOf(p, "name"), func(n *yaml.Node) bool { return slices.Contains(r.names, n.Value) }) {
		return
	}
	for _, v := range slices.Concat(fieldsOf(p, "default"), fieldsOf(p, "one_of")) {
		if v.Value != Hidden {
			*v = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: Hidden}
			r.changed = true
		}
	}
}

var anyURL = regexp.MustCompile(`https?://[^\s"']+`)

func (r *redaction) comments(n *yaml.Node) {
	for _, c := range []*string{&n.HeadComment, &n.LineComment, &n.FootComment} {
		r.put(c, anyURL.ReplaceAllStringFunc(*c, hostOf))
	}
	for _, child := range n.Content {
		r.comments(child)
	}
}

// hasLost reports whether a document has a URL in a comment that the library does not know of, as of one behind a bracket. Written anew,
// the document is without that comment.
func hasLost(doc strictyaml.Document) bool {
	for _, u := range anyURL.FindAllString(doc.Text, -1) {
		if hostOf(u) != u && !says(doc.Node, strings.TrimRight(u, ",]}")) {
			return true
		}
	}
	return false
}

// says reports whether a text is in a value or known comment.
func says(n *yaml.Node, text string) bool {
	return slices.ContainsFunc([]string{n.Value, n.HeadComment, n.LineComment, n.FootComment}, func(s string) bool { return strings.Contains(s, text) }) ||
		slices.ContainsFunc(n.Content, func(child *yaml.Node) bool { return says(child, text) })
}

// fieldsOf are the values of a field, which in what is not checked may stand there twice.
func fieldsOf(n *yaml.Node, name string) (list []*yaml.Node) {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			list = append(list, n.Content[i+1])
		}
	}
	return list
}

// hostOf is what is shown of a URL.
func hostOf(u string) string {
	if host := tidemark.OnlyHost(u); strings.HasPrefix(host, "http") {
		return host
	}
	return Hidden
}

// namesIn are the names of parameters in a text.
func namesIn(text string) (names []string) {
	_, _ = fill(text, func(name string) (string, error) { // an error ends the list: behind it no name is filled in either
		names = append(names, name)
		return "", nil
	})
	return names
}

// Posted reports whether a parameter stands in a URL that a message is posted to, so that its value is not shown to everybody.
func (w Workflow) Posted(parameter string) bool {
	return posted(w.Steps, parameter) || posted(w.OnFailure, parameter)
}

func posted(list []Item, parameter string) bool {
	return slices.ContainsFunc(list, func(x Item) bool {
		return x.Notify != nil && slices.Contains(namesIn(x.Notify.URL), parameter) || posted(x.Parallel, parameter) || posted(x.Steps, parameter)
	})
}

// accept is [Parameter.accept], whose error does not repeat what may be a secret.
func (w Workflow) accept(p Parameter, v Value) error {
	err := p.accept(v)
	if err != nil && w.Posted(p.Name) {
		return tidemark.Errorf(tidemark.Invalid, "%s cannot have that value", p.Name).WithHint("it stands in a URL: its value, and those that it may have, are not told")
	}
	return err
}

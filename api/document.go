package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
)

// config says what huma is to make of the table. Nothing is read or answered but JSON.
func config() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Tidemark", Version: tidemark.Version, License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
				Description: "Keep everything a disk or database has been; hand any moment of it back. docs/api.md is the manual."},
			Servers: []*huma.Server{{URL: "http://tidemark", Description: "The server's unix socket: the host of the URL means nothing."}},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer), SecuritySchemes: map[string]*huma.SecurityScheme{bearer: {Type: "http", Scheme: "bearer",
				Description: "The secret of an API token (tmk_…) or of a session (tms_…), from the network. At the server's own socket nobody is asked who he is: whoever can open it is the administrator."}}},
			Tags: tags,
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// bearer is what the document calls the way in which requests say who asks.
const bearer = "bearer"

// tags are the parts of the API.
var tags = []*huma.Tag{
	{Name: "Server", Description: "The server itself."},
	{Name: "Access", Description: "Who may do what, and what was done."},
	{Name: "Applications", Description: "What is protected, and its points."},
	{Name: "SLA", Description: "What is promised to applications, and whether it is kept."},
	{Name: "Groups", Description: "Applications that are bookmarked in one moment."},
	{Name: "Hosts", Description: "Other hosts, whose disks can be tapped."},
	{Name: "Volumes", Description: "Block volumes that live on Tidemark."},
	{Name: "Exports", Description: "Points over the network."},
	{Name: "Mounts", Description: "Points as disks of a host."},
	{Name: "Clones", Description: "Thin writable copies."},
	{Name: "LiveClones", Description: "Clones that are prepared for others: masked, checked for residue, and published."},
	{Name: "Points", Description: "What is done with points."},
	{Name: "Workflows", Description: "What is done in several steps."},
	{Name: "Pool", Description: "What is stored."},
	{Name: "Webhooks", Description: "Where events are posted to."},
	{Name: "Jobs", Description: "Long work, and what happened."},
}

// describe says of an entry of the table what the framework has to know of it.
func (o operation) describe(api huma.API) huma.Operation {
	h := huma.Operation{OperationID: o.id, Method: o.method, Path: o.path, Tags: []string{o.tag}, Summary: o.summary, Description: o.description,
		DefaultStatus: o.status, MaxBodyBytes: maxRequest, BodyReadTimeout: bodyTime, Responses: map[string]*huma.Response{}, Extensions: map[string]any{"x-tidemark-rule": o.rule.document()}}
	problem := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[tidemark.Problem](), true, "")
	if !o.rule.open {
		h.Security = []map[string][]string{{bearer: {}}}
		h.Responses["401"] = &huma.Response{Description: "denied: it is not known who asks. Only from the network.", Content: map[string]*huma.MediaType{tidemark.MediaProblem: {Schema: problem}},
			Headers: map[string]*huma.Param{"WWW-Authenticate": {Description: "Bearer", Schema: &huma.Schema{Type: huma.TypeString}}}}
	}
	for _, code := range o.statuses() {
		h.Responses[strconv.Itoa(code)] = &huma.Response{Description: o.kindsOf(code), Content: map[string]*huma.MediaType{tidemark.MediaProblem: {Schema: problem}}}
	}
	if o.hasBody() {
		for code, why := range bodyErrors {
			h.Responses[strconv.Itoa(code)] = &huma.Response{Description: "invalid: " + why, Content: map[string]*huma.MediaType{tidemark.MediaProblem: {Schema: problem}}}
		}
	}
	if o.stream {
		h.Responses["200"] = &huma.Response{Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}}
	}
	if len(o.sends) > 0 {
		data := map[string]*huma.Schema{}
		for event, t := range o.sends {
			data[event] = api.OpenAPI().Components.Schemas.Schema(t, true, "")
		}
		h.Extensions["x-tidemark-events"] = data
	}
	if o.once {
		h.Parameters = []*huma.Param{keyParam()}
		h.Responses["422"] = &huma.Response{Description: "invalid: the Idempotency-Key was used for another request.", Content: map[string]*huma.MediaType{tidemark.MediaProblem: {Schema: problem}}}
	}
	if o.queues {
		h.Parameters = append(h.Parameters, &huma.Param{Name: queueParam, In: "query", Description: "Let it wait until it can begin, where it would be refused because its application is busy.",
			Schema: &huma.Schema{Type: huma.TypeBoolean}})
	}
	if o.result != nil {
		h.Extensions["x-tidemark-result"] = api.OpenAPI().Components.Schemas.Schema(o.result, true, "")
	}
	return h
}

// queueParam is the parameter by which a job waits.
const queueParam = "queue"

// bodyErrors are the statuses of a body that is not even read.
var bodyErrors = map[int]string{
	http.StatusRequestTimeout:        "the body does not come.",
	http.StatusRequestEntityTooLarge: "the body is too large.",
	http.StatusUnsupportedMediaType:  "the body is no JSON.",
}

// hasBody reports whether a request has a body.
func (o operation) hasBody() bool {
	if o.input == nil {
		return false
	}
	_, ok := o.input.FieldByName("Body")
	return ok
}

// kindsOf names the kinds of errors that have a status.
func (o operation) kindsOf(code int) string {
	var kinds []string
	for _, k := range append(o.kinds(), tidemark.Corrupt, tidemark.Internal) {
		if codes[k] == code {
			kinds = append(kinds, string(k)+": "+strings.ToLower(tidemark.Kinds[k][:1])+tidemark.Kinds[k][1:]+".")
		}
	}
	return strings.Join(kinds, " ")
}

// document is a rule as the OpenAPI document has it: what has to be allowed, on which objects.
func (r rule) document() []map[string]any {
	list := []map[string]any{}
	for _, n := range r.needs {
		m := map[string]any{"action": n.action, "kind": n.kind}
		if len(n.from) > 0 {
			m["from"] = n.from
		}
		if n.steps {
			m["from"] = []string{"steps"}
		}
		if n.source {
			m["source_of"] = true
		}
		if n.workflows {
			m["workflows_in"] = true
		}
		if n.only != "" {
			m["if"] = n.only
		}
		list = append(list, m)
	}
	return list
}

// document renders what huma has made of the table. It is the same each time.
func document(api huma.API) []byte {
	text, err := json.Marshal(api.OpenAPI())
	if err != nil {
		panic(err) // the table is what it is
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		panic(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func (s *server) sendDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(s.document); err != nil {
		s.log.Debug("a client went away", "error", err)
	}
}

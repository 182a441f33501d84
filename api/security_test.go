package api

import (
	"net/http"
	"testing"

	"tidemark"
)

// TestDocumentHasSecurity: the document says of each operation that asks who somebody is how he says so, and that he may be not known
// or denied; and it is so from the network.
func TestDocumentHasSecurity(t *testing.T) {
	type described struct {
		Security  []map[string][]string
		Responses map[string]struct{ Content map[string]any }
	}
	document := decode[struct {
		Components struct {
			SecuritySchemes map[string]struct{ Type, Scheme string }
		}
		Paths map[string]map[string]described
	}](t, Document())
	if s := document.Components.SecuritySchemes["bearer"]; s.Type != "http" || s.Scheme != "bearer" {
		t.Fatalf("%+v", s)
	}
	x := newRig(t)
	h := outside(x)
	open := 0
	for _, o := range table() {
		d := document.Paths[o.path][map[string]string{http.MethodGet: "get", http.MethodPost: "post", http.MethodPut: "put", http.MethodPatch: "patch", http.MethodDelete: "delete"}[o.method]]
		if o.rule.open {
			open++
			if d.Security != nil || d.Responses["500"].Content == nil {
				t.Errorf("%s asks nobody who he is: %+v", o.id, d)
			}
			continue
		}
		if len(d.Security) != 1 || d.Security[0]["bearer"] == nil {
			t.Errorf("%s: %+v", o.id, d.Security)
		}
		for _, code := range []string{"401", "403"} {
			if _, ok := d.Responses[code].Content[tidemark.MediaProblem]; !ok {
				t.Errorf("%s has no %s", o.id, code)
			}
		}
		w := ask(h, request(o, "", samples[o.id], "x", "x"), "")
		if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" || w.Header().Get("Content-Type") != tidemark.MediaProblem {
			t.Errorf("%s: %d %v: %s", o.id, w.Code, w.Header(), w.Body)
		}
	}
	if open == 0 || open > 12 {
		t.Errorf("%d operations ask nobody who he is", open)
	}
}

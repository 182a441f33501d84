package api

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"tidemark"
	"tidemark/access"
)

// TestOnce holds that a request with a key is done once, also when the server was started again in between.
func TestOnce(t *testing.T) {
	x := newRig(t)
	const body = `{"name":"v","size_bytes":1048576}`
	first, text := x.ask("POST", "/v1/volumes", body, keyHeader, `"one"`)
	if first.StatusCode != 201 || first.Header.Get(replayed) != "" {
		t.Fatalf("%s: %s", first.Status, text)
	}
	for _, when := range []string{"at once", "after a restart"} {
		if when == "after a restart" {
			x.stop()
			x.start()
		}
		again, same := x.ask("POST", "/v1/volumes", body, keyHeader, `"one"`)
		if again.StatusCode != 201 || !bytes.Equal(text, same) || again.Header.Get("Location") != "/v1/volumes/v" || again.Header.Get(replayed) != "true" || again.Header.Get("Content-Type") != first.Header.Get("Content-Type") {
			t.Errorf("%s: %s %v: %s", when, again.Status, again.Header, same)
		}
	}
	if resp, text := x.ask("POST", "/v1/volumes", body, keyHeader, `"two"`); resp.StatusCode != 409 {
		t.Errorf("%s: %s", resp.Status, text)
	}
	if resp, text := x.ask("POST", "/v1/volumes", `{"name":"w","size_bytes":1048576}`, keyHeader, `"one"`); resp.StatusCode != 422 || decode[tidemark.Problem](t, text).Kind != tidemark.Invalid {
		t.Errorf("%s: %s", resp.Status, text)
	}
	if resp, text := x.ask("POST", "/v1/pool/reclaim", "", keyHeader, `"one"`); resp.StatusCode != 422 {
		t.Errorf("%s: %s", resp.Status, text)
	}
	if resp, text := x.ask("POST", "/v1/volumes", body, keyHeader, strings.Repeat("k", maxKey+1)); resp.StatusCode != 400 {
		t.Errorf("%s: %s", resp.Status, text)
	}
	n, err := counted(x.Volumes(context.Background()))()
	if err != nil || n != 1 {
		t.Errorf("there are %d volumes: %v", n, err)
	}
}

// TestOnceAtOnce asks for one thing many times at once: it is done once, and who comes too early is told to wait.
func TestOnceAtOnce(t *testing.T) {
	x := newRig(t)
	var all sync.WaitGroup
	codes := make([]int, 8)
	for i := range codes {
		all.Go(func() {
			resp, _ := x.ask("POST", "/v1/pool/reclaim", "", keyHeader, `"reclaim"`)
			codes[i] = resp.StatusCode
		})
	}
	all.Wait()
	for _, code := range codes {
		if code != http.StatusAccepted && code != http.StatusConflict {
			t.Errorf("%v", codes)
			break
		}
	}
	n, err := counted(x.Jobs(context.Background(), tidemark.JobFilter{}))()
	if err != nil || n != 1 {
		t.Errorf("%d jobs: %v", n, err)
	}
}

// TestOnceIsNotKnown: what a server did that was killed is not known, and not done again.
func TestOnceIsNotKnown(t *testing.T) {
	x := newRig(t)
	r, err := http.NewRequest("POST", "http://tidemark/v1/pool/reclaim", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body = http.NoBody
	socket := &caller{principal: access.Principal{Method: access.BySocket}}
	print, err := fingerprint(r.WithContext(context.WithValue(r.Context(), callerKey{}, socket)))
	if err != nil {
		t.Fatal(err)
	}
	if known, err := x.c.TakeKey(context.Background(), "cut", print, "another process"); err != nil || known != nil {
		t.Fatal(known, err)
	}
	resp, text := x.ask("POST", "/v1/pool/reclaim", "", keyHeader, `"cut"`)
	if resp.StatusCode != 409 || !strings.Contains(string(text), "not known whether it was done") {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// TestOnceKeepsNoSecret: the answers of add-host and make-token have tokens, which must not lie in the catalog.
func TestOnceKeepsNoSecret(t *testing.T) {
	secrets := 0
	for _, o := range table() {
		if o.secret {
			secrets++
		}
	}
	if secrets != 2 {
		t.Errorf("%d operations have secrets", secrets)
	}
	x := newRig(t)
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	w := httptest.NewRecorder()
	if known, err := x.c.TakeKey(context.Background(), "secret", "print", s.process); err != nil || known != nil {
		t.Fatal(known, err)
	}
	s.first(operation{id: "add-host", secret: true}, "secret", w, httptest.NewRequest("POST", "/", nil), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"token":"hush"}`))
	})
	if !strings.Contains(w.Body.String(), "hush") {
		t.Error("the first was not told the token")
	}
	known, err := x.c.TakeKey(context.Background(), "secret", "print", s.process)
	if err != nil || known == nil || known.Answer == nil || known.Answer.Status != http.StatusCreated || known.Answer.Body != "" {
		t.Fatalf("%+v, %v", known, err)
	}
	again := httptest.NewRecorder()
	s.again(again, *known.Answer)
	if again.Code != http.StatusConflict || strings.Contains(again.Body.String(), "hush") {
		t.Errorf("%d: %s", again.Code, again.Body)
	}
}

// TestOnceIsReleased: after a fault, and a panic, the key is free.
func TestOnceIsReleased(t *testing.T) {
	x := newRig(t)
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	ctx := context.Background()
	for _, next := range []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		func(http.ResponseWriter, *http.Request) { panic("a fault") },
	} {
		if known, err := x.c.TakeKey(ctx, "k", "print", s.process); err != nil || known != nil {
			t.Fatal(known, err)
		}
		func() {
			defer func() { _ = recover() }()
			w := httptest.NewRecorder()
			s.first(operation{id: "reclaim"}, "k", w, httptest.NewRequest("POST", "/", nil), next)
		}()
	}
	if known, err := x.c.TakeKey(ctx, "k", "print", s.process); err != nil || known != nil {
		t.Fatal(known, err)
	}
}

func TestParseKey(t *testing.T) {
	for header, want := range map[string]string{`"a"`: "a", `a`: "a", `"a\"b\\"`: `a"b\`, `8e03978e-40d5`: "8e03978e-40d5"} {
		if key, err := parseKey(header); err != nil || key != want {
			t.Errorf("%s is read as %q, %v", header, key, err)
		}
	}
	for _, header := range []string{``, `"`, `""`, `"a`, `"a"b`, `"a\b"`, "a\x00", "ä", `"` + strings.Repeat("x", maxKey+1) + `"`} {
		if key, err := parseKey(header); tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("%q is read as %q, %v", header, key, err)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{`"a"`, `a`, `"\""`, `"`, ``} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		key, err := parseKey(header)
		if err != nil {
			return
		}
		if key == "" || len(key) > maxKey {
			t.Errorf("%q is read as %q", header, key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, err := parseKey(quoted); err != nil || again != key {
			t.Errorf("%q is read as %q, %v, and not %q", quoted, again, err, key)
		}
	})
}

package api

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/catalog/catalogtest"
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
	if known, err := x.c.TakeKey(context.Background(), catalog.NewKey(ownKey(context.Background(), "cut"), "another process"), print); err != nil || known != nil {
		t.Fatal(known, err)
	}
	resp, text := x.ask("POST", "/v1/pool/reclaim", "", keyHeader, `"cut"`)
	if resp.StatusCode != 409 || !strings.Contains(string(text), "not known whether it was done") {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// TestOnceIsOnesOwn: the key that one user has used is free for another, who is not told of it. What was not allowed is asked for again with the
// same key when it is granted, and done.
func TestOnceIsOnesOwn(t *testing.T) {
	x := newRig(t)
	h := outside(x)
	operator := access.Grant{Role: access.Operator, Scope: access.Scope{Kind: access.Everything}}
	secrets := map[string]string{"alice": x.person("alice", operator), "bob": x.person("bob", operator), "carol": x.person("carol")}
	volume := func(user, name string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/v1/volumes", strings.NewReader(`{"name":"`+name+`","size_bytes":4096}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(keyHeader, `"weekly-1"`)
		return ask(h, r, secrets[user])
	}
	for _, one := range []struct {
		user, name string
		status     int
		again      string
	}{
		{"alice", "a", http.StatusCreated, ""}, {"bob", "b", http.StatusCreated, ""}, {"alice", "a", http.StatusCreated, "true"},
		{"alice", "b", http.StatusUnprocessableEntity, ""}, {"carol", "c", http.StatusForbidden, ""}, {"carol", "a", http.StatusForbidden, ""},
	} {
		if w := volume(one.user, one.name); w.Code != one.status || w.Header().Get(replayed) != one.again {
			t.Errorf("%s asks for %s: %d, %v: %s", one.user, one.name, w.Code, w.Header(), w.Body)
		}
	}
	operator.Subject = access.Subject{Kind: access.User, Name: "carol"}
	_, err := x.AddGrant(t.Context(), operator)
	worksIn(t)(err)
	if w := volume("carol", "c"); w.Code != http.StatusCreated || w.Header().Get(replayed) != "" {
		t.Errorf("what is granted now: %d: %s", w.Code, w.Body)
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
	k := catalog.NewKey("secret", s.process)
	if known, err := x.c.TakeKey(context.Background(), k, "print"); err != nil || known != nil {
		t.Fatal(known, err)
	}
	s.first(operation{id: "add-host", secret: true}, k, w, httptest.NewRequest("POST", "/", nil), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"token":"hush"}`))
	})
	if !strings.Contains(w.Body.String(), "hush") {
		t.Error("the first was not told the token")
	}
	known, err := x.c.TakeKey(context.Background(), catalog.NewKey("secret", s.process), "print")
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
		k := catalog.NewKey("k", s.process)
		if known, err := x.c.TakeKey(ctx, k, "print"); err != nil || known != nil {
			t.Fatal(known, err)
		}
		func() {
			defer func() { _ = recover() }()
			w := httptest.NewRecorder()
			s.first(operation{id: "reclaim"}, k, w, httptest.NewRequest("POST", "/", nil), next)
		}()
	}
	if known, err := x.c.TakeKey(ctx, catalog.NewKey("k", s.process), "print"); err != nil || known != nil {
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

// awayRig is a server whose catalog is behind a gate.
func awayRig(t *testing.T) (*rig, *catalogtest.Gate) {
	t.Helper()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	x := &rig{t: t, dir: t.TempDir(), catalog: g.URL(), check: newValidator(t), seen: map[string]int{}}
	x.start()
	t.Cleanup(func() {
		g.Set(false, false)
		x.stop()
	})
	return x, g
}

// until asks until it is answered with a status.
func until(t *testing.T, status int, ask func() (*http.Response, []byte)) (*http.Response, []byte) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		resp, text := ask()
		if resp.StatusCode == status {
			return resp, text
		}
		if time.Now().After(end) {
			t.Fatalf("it is %s in the end, and not %d: %s", resp.Status, status, text)
		}
	}
}

// TestOnceAway takes the catalog away when the job of a request with a key is recorded, and before it is answered: the request has failed. Who asks again with the key,
// when the catalog is back, has it done, and once.
func TestOnceAway(t *testing.T) {
	x, g := awayRig(t)
	for i, path := range []string{"/v1/pool/reclaim", "/v1/pool/reclaim?queue=true"} {
		key := fmt.Sprintf("key%d", i)
		lost := g.LoseCommit(`INSERT INTO "jobs"`, true)
		if resp, text := x.ask("POST", path, "", keyHeader, key); resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		<-lost
		g.Set(false, false)
		resp, text := until(t, http.StatusAccepted, func() (*http.Response, []byte) { return x.ask("POST", path, "", keyHeader, key) })
		if resp.Header.Get(replayed) != "" {
			t.Errorf("what failed is answered again: %s", text)
		}
		made := decode[tidemark.Job](t, text)
		if again, same := x.ask("POST", path, "", keyHeader, key); again.Header.Get(replayed) != "true" || !bytes.Equal(text, same) {
			t.Errorf("%s: %s", again.Status, same)
		}
		if j, err := x.c.Job(context.Background(), made.ID, time.Minute); err != nil || j.State != tidemark.JobDone {
			t.Errorf("%+v, %v", j, err)
		}
		list, err := x.c.Jobs(context.Background(), tidemark.JobFilter{Limit: 99})
		if err != nil || len(list) != 2*(i+1) {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, j := range list {
			if j.ID == made.ID-1 && (j.State != tidemark.JobFailed || j.Attempt > 1) {
				t.Errorf("what was told to have failed is %s", j.State)
			}
		}
	}
	// A connection that is cut, and made again, is not even noticed.
	lost := g.LoseCommit(`INSERT INTO "jobs"`, false)
	if resp, text := x.ask("POST", "/v1/pool/reclaim?queue=true", "", keyHeader, "short"); resp.StatusCode != http.StatusAccepted {
		t.Errorf("%s: %s", resp.Status, text)
	}
	<-lost
}

// TestOnceEndsAway: a request with a key ends while the catalog is away, done, failed or by a panic. Soon after that is back, the key has its answer or is free.
func TestOnceEndsAway(t *testing.T) {
	x, g := awayRig(t)
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	ctx := context.Background()
	for name, next := range map[string]http.HandlerFunc{
		"done":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) },
		"failed": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"panic":  func(http.ResponseWriter, *http.Request) { panic("a fault") },
	} {
		k := catalog.NewKey(name, s.process)
		if known, err := x.c.TakeKey(catalog.Patient(ctx), k, "print"); err != nil || known != nil {
			t.Fatal(known, err)
		}
		func() {
			defer func() { _ = recover() }()
			s.first(operation{id: "reclaim"}, k, httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), func(w http.ResponseWriter, r *http.Request) {
				g.Set(true, false)
				next(w, r)
			})
		}()
		g.Set(false, false)
		next := catalog.NewKey(name, s.process)
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			known, err := x.c.TakeKey(catalog.Patient(ctx), next, "print")
			if err == nil && (name != "done" && known == nil || name == "done" && known != nil && known.Answer != nil && known.Answer.Status == http.StatusCreated) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %+v, %v", name, known, err)
			}
		}
	}
}

// A later user of a name is not answered what the former one was, by whatever key.
func TestKeyOfANamesake(t *testing.T) {
	x := newRig(t)
	g := access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}}
	h, body := outside(x), `{"name":"v","size_bytes":1048576}`
	secret := x.person("ann", g)
	first := func() *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/v1/volumes", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(keyHeader, `"one"`)
		return ask(h, r, secret)
	}
	for i, again := range []string{"", "true"} {
		if w := first(); w.Code >= 300 || w.Header().Get(replayed) != again {
			t.Fatalf("%d: %d: %s", i, w.Code, w.Body)
		}
	}
	if err := x.RemoveUser(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	secret = x.person("ann", g)
	if w := first(); w.Code != http.StatusConflict || w.Header().Get(replayed) != "" { // there is one by now
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

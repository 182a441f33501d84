package api

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog/catalogtest"
)

// hostile are texts that mean something to a database, a file system, a log or a parser.
var hostile = []string{
	`'; DROP TABLE users; --`, `' OR '1'='1`, `x' UNION SELECT hash FROM tokens --`, `"); DELETE FROM kept; --`, `\'; SELECT pg_sleep(9); --`, `%`, `_`, `$1`, `?`, `:name`,
	`../../../../etc/passwd`, `..`, `.`, `a/b`, `/etc/passwd`, `a\b`, "a\x00b", "\x00", "a\r\nX: y", "a\nb", "\x1b[31m", "\xff\xfe", "ￇ'", " ", "-rf", "--help",
	"$(id)", "`id`", "|id", "{{ run }}", "${HOME}", "%s%n", "<script>", "9223372036854775808", "-1", "1e9", "0x10", "1;2", "null", "[]", "{}", "true",
	strings.Repeat("a", 300), strings.Repeat("a", 40_000), strings.Repeat("../", 5000),
}

// TestHostile puts what is hostile wherever a request has room for it: in each part of a path, each parameter of a query, each text of a body, and
// headers. It is refused, or finds nothing; it is never a fault of the server, and nothing is changed.
func TestHostile(t *testing.T) {
	t.Run("file", func(t *testing.T) { testHostile(t, "") })
	t.Run("PostgreSQL", func(t *testing.T) {
		testHostile(t, "postgres://postgres@/postgres?host="+url.QueryEscape(catalogtest.StartPostgres(t)))
	})
}

func testHostile(t *testing.T, catalog string) {
	x := &rig{t: t, dir: t.TempDir(), catalog: catalog, check: newValidator(t), seen: map[string]int{}}
	x.start()
	t.Cleanup(x.stop)
	x.applications("orders")
	x.clone("", tidemark.CloneSpec{Ref: "orders@one", Name: "k"})
	x.person("bob")
	secret := x.person("alice", access.Grant{Role: access.Admin, Scope: scopes["everything"]})
	h, before := outside(x), listed(t, x)
	asked := 0
	send := func(o operation, what string, r *http.Request) {
		t.Helper()
		asked++
		begun := time.Now()
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= http.StatusInternalServerError && !(o.id == "begin-device-login" && w.Code == http.StatusServiceUnavailable) {
			t.Errorf("%s with %.60q in %s is answered with %d: %.300s", o.id, r.URL.String(), what, w.Code, w.Body)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s with something in %s takes %v", o.id, what, took)
		}
	}
	for _, o := range table() {
		if o.stream { // TestHostileHeaders
			continue
		}
		for _, text := range hostile {
			if o.id == "login" && !strings.Contains(text, "\x00") { // each that is compared takes its time
				continue
			}
			for what, r := range hostileRequests(o, text) {
				send(o, what, r)
			}
		}
	}
	after := listed(t, x)
	before["list-jobs"], after["list-jobs"] = "", "" // to reclaim or to verify all reads no body, or none that has to be there
	if !maps.Equal(before, after) {
		t.Errorf("before it was\n%v\nand after it is\n%v", before, after)
	}
	if _, err := x.c.VerifyAudit(t.Context(), nil); err != nil {
		t.Errorf("the audit: %v", err)
	}
	t.Logf("%d requests", asked)
}

// named reports whether a text is good for a name of something, or names a file: to make that is no harm.
func named(text string) bool {
	return tidemark.CheckName(text) == nil || access.CheckUser(text) == nil || access.CheckGroup(text) == nil || strings.HasPrefix(text, "/")
}

// hostileRequests are requests of an operation, each with a hostile text in one place, by that place. The rest is about what is not there or, where
// that would be made, about what is there already: all would be refused without the text, too.
func hostileRequests(o operation, text string) map[string]*http.Request {
	all := map[string]*http.Request{}
	add := func(what, path, body string) {
		r, err := http.NewRequest(o.method, "http://tidemark"+path, strings.NewReader(body))
		if err != nil {
			return // net/http itself refuses it
		}
		r.RemoteAddr, r.RequestURI = "192.0.2.7:4711", path
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		all[what] = r
	}
	escaped := url.PathEscape(text)
	if text == "." || text == ".." {
		escaped = strings.ReplaceAll(text, ".", "%2e")
	}
	name := "nowhere"
	if o.status == http.StatusCreated || o.id == "protect-application" {
		name = "orders"
	}
	good := strings.NewReplacer("NAME", name, "APP", name, "/etc/", "/nowhere/").Replace(samples[o.id])
	if strings.Contains(o.path, "{") && !named(text) {
		path := o.path
		for strings.Contains(path, "{") {
			head, rest, _ := strings.Cut(path, "{")
			_, tail, _ := strings.Cut(rest, "}")
			path = head + escaped + tail
		}
		add("the path", path, good)
	}
	harmless := strings.NewReplacer("{id}", "999999", "{position}", "1").Replace(o.path)
	for _, part := range []string{"{name}", "{user}", "{group}"} {
		harmless = strings.ReplaceAll(harmless, part, "nowhere")
	}
	if o.method == http.MethodGet || strings.Contains(o.path, "{") {
		queries := []string{}
		if o.input != nil {
			for _, f := range reflect.VisibleFields(o.input) {
				if q, _, _ := strings.Cut(f.Tag.Get("query"), ","); q != "" {
					queries = append(queries, q)
				}
			}
		}
		if text == hostile[0] { // there is none of these, and they are refused whatever they say
			queries = append(queries, "after", "before", "sort", "order", "filter", text)
		}
		for _, q := range queries {
			add("query "+q[:min(len(q), 20)], harmless+"?"+url.QueryEscape(q)+"="+url.QueryEscape(text), good)
		}
		add("a cursor of it", harmless+"?cursor="+base64.RawURLEncoding.EncodeToString([]byte("1\n"+harmless+"\n"+text)), good)
	}
	if named(text) {
		return all
	}
	if good != "" {
		var body any
		if err := json.Unmarshal([]byte(good), &body); err != nil {
			panic(err) // a sample is JSON
		}
		places := 0
		withText(body, text, func() {
			b, _ := json.Marshal(body)
			places++
			add(fmt.Sprint("text ", places, " of the body"), harmless, string(b))
		})
		add("the body", harmless, text)
	}
	return all
}

// withText puts a text in the place of each text of a body, one after the other.
func withText(body any, text string, use func()) {
	switch v := body.(type) {
	case map[string]any:
		for k, was := range v {
			if _, ok := was.(string); ok {
				v[k] = text
				use()
				v[k] = was
			}
			withText(was, text, use)
		}
	case []any:
		for _, each := range v {
			withText(each, text, use)
		}
	}
}

// TestHostileHeaders does the same with the headers that the server reads, over a connection, as no library would send them.
func TestHostileHeaders(t *testing.T) {
	x := newRig(t)
	x.applications("orders")
	secret := x.person("alice", access.Grant{Role: access.Admin, Scope: scopes["everything"]})
	before := listed(t, x)
	srv := httptest.NewServer(outside(x))
	defer srv.Close()
	send := func(header, value string) {
		t.Helper()
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		worksIn(t)(err)
		defer conn.Close()
		worksIn(t)(conn.SetDeadline(time.Now().Add(20 * time.Second)))
		headers := map[string]string{"Host": "tidemark", "Authorization": "Bearer " + secret, "Content-Type": "application/json", "Content-Length": "2", "Connection": "close"}
		headers[header] = value
		path := "POST /v1/volumes"
		if header == "Last-Event-ID" {
			path, headers["Content-Length"] = "GET /v1/events/stream", "0"
		}
		var b strings.Builder
		for k, v := range headers {
			fmt.Fprintf(&b, "%s: %s\r\n", k, v)
		}
		_, _ = io.WriteString(conn, path+" HTTP/1.1\r\n"+b.String()+"\r\n{}") // it may be cut off while it writes
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %.60q is not answered: %v", header, value, err)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented || resp.StatusCode < 400 && header != "Last-Event-ID" {
			t.Errorf("%s: %.60q is answered with %s", header, value, resp.Status)
		}
		if resp.Header.Get("X") != "" {
			t.Errorf("%s: %.60q makes a header of the answer", header, value)
		}
		if text, _ := io.ReadAll(io.LimitReader(resp.Body, 200)); resp.StatusCode == http.StatusUnauthorized && strings.Contains(string(text), "SELECT") {
			t.Errorf("%s: it is told again: %s", header, text)
		}
	}
	for _, text := range hostile {
		for _, header := range []string{keyHeader, "Authorization", "X-Forwarded-For", "Forwarded", "X-Real-IP", "Host", "Content-Type", "Last-Event-ID"} {
			send(header, text)
		}
		send("Authorization", "Bearer "+text)
		send("Authorization", "Bearer "+access.TokenPrefix+text)
		send("Authorization", "Bearer "+secret+text)
		send(keyHeader, `"`+text+`"`)
	}
	if after := listed(t, x); !maps.Equal(before, after) {
		t.Errorf("before it was\n%v\nand after it is\n%v", before, after)
	}
}

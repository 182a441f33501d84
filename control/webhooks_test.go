package control

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
)

// taker takes messages of webhooks, or does not.
type taker struct {
	*httptest.Server
	key []byte // nil: nothing is signed

	mu     sync.Mutex
	status int              // guarded by mu; 0: nothing is answered
	taken  []webhookMessage // guarded by mu
	asked  []string         // the deliveries of all attempts; guarded by mu
}

func newTaker(t *testing.T, status int) *taker {
	k := &taker{status: status}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var m webhookMessage
		if err == nil {
			err = json.Unmarshal(body, &m)
		}
		if err != nil || r.Header.Get("X-Tidemark-Delivery") != m.Delivery || m.Version != webhookFormat || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %v %s", err, r.Header, body)
		}
		signature := ""
		if k.key != nil {
			signature = "sha256=" + sign(k.key, r.Header.Get("X-Tidemark-Timestamp"), body)
		}
		if got := r.Header.Get("X-Tidemark-Signature"); !hmac.Equal([]byte(got), []byte(signature)) {
			t.Errorf("signed as %q", got)
		}
		k.mu.Lock()
		k.asked = append(k.asked, m.Delivery)
		code := k.status
		if code == http.StatusOK {
			k.taken = append(k.taken, m)
		}
		k.mu.Unlock()
		if code == 0 {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(k.Close)
	return k
}

func (k *taker) answer(status int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status = status
}

// told are the messages of the events that were taken, and how many were told as missed.
func (k *taker) told() (list []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.taken {
		switch m.Type {
		case "event":
			list = append(list, m.Event.Message)
		case "missed":
			list = append(list, fmt.Sprint("missed ", m.Missed))
		default:
			list = append(list, m.Type)
		}
	}
	return list
}

func (k *taker) attempts() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

// holds waits until something is so.
func holds(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 1200 {
		if is() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("it never holds that %s", what)
}

// tells waits until a receiver has taken what it should, and nothing else.
func (k *taker) tells(t *testing.T, want ...string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("it was told %q, and not %q", k.told(), want)
		}
	}()
	holds(t, "all was taken", func() bool { return len(k.told()) >= len(want) })
	if got := k.told(); !slices.Equal(got, want) {
		t.Fatalf("it was told %q, and not %q", got, want)
	}
}

// serverIn opens a server on a directory.
func serverIn(t *testing.T, dir string) *Control {
	t.Helper()
	c, err := Open(context.Background(), Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closes(t *testing.T, c *Control) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func (k *taker) hooked(t *testing.T, c *Control, spec tidemark.WebhookSpec) {
	t.Helper()
	spec.URL = k.URL + "/token"
	if _, err := c.AddWebhook(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

func webhookOf(t *testing.T, c *Control, name string) tidemark.Webhook {
	t.Helper()
	w, err := c.Webhook(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// putSecret makes a key that only who runs the server can read.
func putSecret(t *testing.T, c *Control, name, key string) {
	t.Helper()
	if err := os.MkdirAll(c.path(secretDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path(secretDir, name), []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Events come in order, signed, and those alone that are wanted; one that is not taken comes again under the same number, and none goes before it.
func TestWebhook(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	putSecret(t, c, "key", "0123456789abcdef")
	ops, orders := newTaker(t, 500), newTaker(t, 200)
	ops.key = []byte("0123456789abcdef")
	c.event("error", "", "before")
	ops.hooked(t, c, tidemark.WebhookSpec{Name: "ops", Level: "warning", Secret: "key"})
	orders.hooked(t, c, tidemark.WebhookSpec{Name: "orders", Applications: []string{"ord*", "shop"}})
	for i, e := range []struct{ level, app string }{{"info", "orders"}, {"warning", "orders"}, {"error", "files"}, {"error", ""}, {"info", "shop"}, {"warning", "shop2"}} {
		c.event(e.level, e.app, "%d", i)
	}
	orders.tells(t, "0", "1", "4") // the other waits
	holds(t, "it is tried again", func() bool { return len(ops.attempts()) >= 2 })
	if a := ops.attempts(); a[0] != a[1] || !strings.HasPrefix(a[0], c.identity+"/webhook/ops/") {
		t.Errorf("the attempts are %q", a)
	}
	w := webhookOf(t, c, "ops")
	if w.State != tidemark.WebhookFailing || w.Pending != 4 || w.Oldest == nil || w.FailingSince == nil || !strings.Contains(w.Error, "500") || strings.Contains(w.Error, "token") {
		t.Errorf("%+v", w)
	}
	ops.answer(200)
	ops.tells(t, "1", "2", "3", "5")
	holds(t, "all is well", func() bool { w := webhookOf(t, c, "ops"); return w.State == tidemark.WebhookOK && w.Delivered == 4 })
	if w := webhookOf(t, c, "ops"); w.Pending != 0 || w.Error != "" || w.Failed < 2 {
		t.Errorf("%+v", w)
	}
	m := ops.taken[1]
	if m.Server.ID != c.identity || m.Server.Release != tidemark.Version || m.Webhook != "ops" || m.Event.Application != "files" || m.Event.Level != "error" || m.Event.Time.IsZero() || m.Event.ID == 0 {
		t.Errorf("%+v", m)
	}
}

// A receiver that does not answer keeps nobody else waiting, neither those who record events nor a server that stops.
func TestWebhookHangs(t *testing.T) {
	c := serverIn(t, t.TempDir())
	deaf, other := newTaker(t, 0), newTaker(t, 200)
	deaf.hooked(t, c, tidemark.WebhookSpec{Name: "deaf"})
	other.hooked(t, c, tidemark.WebhookSpec{Name: "other"})
	c.event("info", "", "one")
	holds(t, "it is tried", func() bool { return len(deaf.attempts()) == 1 })
	c.event("info", "", "two")
	other.tells(t, "one", "two")
	begun := time.Now()
	if _, err := c.ChangeWebhook(t.Context(), "deaf", tidemark.WebhookChange{URL: new(other.URL)}); err != nil {
		t.Fatal(err)
	}
	other.tells(t, "one", "two", "one", "two")
	if _, err := c.ChangeWebhook(t.Context(), "deaf", tidemark.WebhookChange{URL: new(deaf.URL)}); err != nil {
		t.Fatal(err)
	}
	c.event("info", "", "three")
	holds(t, "it is tried", func() bool { return len(deaf.attempts()) == 2 })
	closes(t, c)
	if took := time.Since(begun); took > postLimit {
		t.Errorf("it took %v", took)
	}
}

// What happened before the server stopped is posted by the next one, and what was taken is not posted again.
func TestWebhookGoesOn(t *testing.T) {
	dir := t.TempDir()
	c := serverIn(t, dir)
	k := newTaker(t, 200)
	k.hooked(t, c, tidemark.WebhookSpec{Name: "ops"})
	c.event("info", "", "one")
	holds(t, "it is noted", func() bool { return webhookOf(t, c, "ops").Delivered == 1 })
	k.answer(503)
	c.event("info", "", "two")
	c.event("info", "", "three")
	holds(t, "it fails", func() bool { return webhookOf(t, c, "ops").State == tidemark.WebhookFailing })
	since := webhookOf(t, c, "ops").FailingSince
	closes(t, c)
	c = serverIn(t, dir)
	defer func() { closes(t, c) }()
	n := len(k.attempts())
	holds(t, "it is tried again", func() bool { return len(k.attempts()) > n })
	if w := webhookOf(t, c, "ops"); w.FailingSince == nil || !w.FailingSince.Equal(*since) {
		t.Errorf("it fails since %v, and not %v", w.FailingSince, since)
	}
	k.answer(200)
	k.tells(t, "one", "two", "three")
	holds(t, "it is noted", func() bool { return webhookOf(t, c, "ops").Delivered == 3 })
	closes(t, c)
	c = serverIn(t, dir)
	c.event("info", "", "four")
	k.tells(t, "one", "two", "three", "four")
	k.answer(0) // cut behind the post, and before the answer: the receiver may have it, and knows it again
	n = len(k.attempts())
	c.event("info", "", "five")
	holds(t, "it is posted", func() bool { return len(k.attempts()) > n })
	closes(t, c)
	k.answer(200)
	c = serverIn(t, dir)
	k.tells(t, "one", "two", "three", "four", "five")
	if a := k.attempts(); a[len(a)-1] != a[len(a)-2] {
		t.Errorf("it comes again under another number: %q", a)
	}
}

// Who was away for so long that events were forgotten is told how many of those that he wanted.
func TestWebhookMisses(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	k := newTaker(t, 503)
	k.hooked(t, c, tidemark.WebhookSpec{Name: "ops", Level: "warning"})
	for i := range 20 {
		c.event([]string{"info", "error"}[i%2], "", "%d", i)
	}
	if n, err := c.catalog.ForgetEvents(t.Context(), 5); err != nil || n == 0 {
		t.Fatalf("%d, %v", n, err)
	}
	holds(t, "it fails", func() bool { return webhookOf(t, c, "ops").State == tidemark.WebhookFailing })
	if w := webhookOf(t, c, "ops"); w.Missed != 7 || w.Pending != 3 {
		t.Errorf("%+v", w)
	}
	k.answer(200)
	k.tells(t, "missed 7", "15", "17", "19")
	holds(t, "it is noted", func() bool { w := webhookOf(t, c, "ops"); return w.Missed == 0 && w.Delivered == 4 && w.Pending == 0 })
}

// A message that tries a webhook goes out at once, past what waits; if it is taken, what waits follows.
func TestWebhookTested(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	k := newTaker(t, 404)
	k.hooked(t, c, tidemark.WebhookSpec{Name: "ops"})
	c.event("info", "", "one")
	holds(t, "it fails", func() bool { return webhookOf(t, c, "ops").Failed >= 3 })
	if x, err := c.TestWebhook(t.Context(), "ops"); err != nil || x.Taken || x.Status != 404 || !strings.Contains(x.Error, "404") || strings.Contains(x.Error, "token") {
		t.Errorf("%+v, %v", x, err)
	}
	k.answer(200)
	if x, err := c.TestWebhook(t.Context(), "ops"); err != nil || !x.Taken || x.Status != 200 || x.Error != "" {
		t.Errorf("%+v, %v", x, err)
	}
	holds(t, "what waits follows", func() bool { return slices.Contains(k.told(), "one") })
	gone := newTaker(t, 200)
	gone.hooked(t, c, tidemark.WebhookSpec{Name: "gone", Off: true})
	gone.Close()
	if x, err := c.TestWebhook(t.Context(), "gone"); err != nil || x.Taken || x.Status != 0 || !strings.Contains(x.Error, "was not taken by 127.0.0.1") {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := c.TestWebhook(t.Context(), "nobody"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Error(err)
	}
}

// A key that is gone is a failure like another: what waits is posted when it is back. A redirect elsewhere is not followed.
func TestWebhookFailures(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	putSecret(t, c, "key", "0123456789abcdef")
	k := newTaker(t, 200)
	k.key = []byte("0123456789abcdef")
	k.hooked(t, c, tidemark.WebhookSpec{Name: "ops", Secret: "key"})
	if err := os.Remove(c.path(secretDir, "key")); err != nil {
		t.Fatal(err)
	}
	c.event("info", "", "one")
	holds(t, "it fails", func() bool { return webhookOf(t, c, "ops").State == tidemark.WebhookFailing })
	if w := webhookOf(t, c, "ops"); !strings.Contains(w.Error, "the secret key cannot be read") {
		t.Errorf("%+v", w)
	}
	putSecret(t, c, "key", "0123456789abcdef")
	k.tells(t, "one")
	away := httptest.NewServer(http.RedirectHandler(k.URL, http.StatusTemporaryRedirect))
	defer away.Close()
	if _, err := c.AddWebhook(t.Context(), tidemark.WebhookSpec{Name: "away", URL: away.URL}); err != nil {
		t.Fatal(err)
	}
	c.event("info", "", "two")
	k.tells(t, "one", "two")
	holds(t, "it fails", func() bool { return strings.Contains(webhookOf(t, c, "away").Error, "another host") })
	if err := c.RemoveWebhook(t.Context(), "away"); err != nil {
		t.Fatal(err)
	}
}

// What cannot be posted to is refused, and changes nothing.
func TestWebhookRefused(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	for _, x := range []struct {
		spec tidemark.WebhookSpec
		want string
	}{
		{tidemark.WebhookSpec{Name: "../x", URL: "https://x"}, "the name"},
		{tidemark.WebhookSpec{Name: "x", URL: ""}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://"}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://:80/"}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "file:///etc/passwd"}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://u:pw@x/"}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x/\n"}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x/" + strings.Repeat("x", 2048)}, "no URL"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x", Level: "fatal"}, "no level"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x", Applications: []string{"a b"}}, "no pattern"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x", Secret: "../identity"}, "the name"},
		{tidemark.WebhookSpec{Name: "x", URL: "https://x", Secret: "none"}, "the secret none cannot be read"},
	} {
		if _, err := c.AddWebhook(t.Context(), x.spec); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "pw") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", x.spec, err)
		}
	}
	if list, err := c.Webhooks(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	spec := tidemark.WebhookSpec{Name: "x", URL: "https://x/y", Level: "error", Off: true}
	if _, err := c.AddWebhook(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	before := webhookOf(t, c, "x")
	for _, change := range []tidemark.WebhookChange{{URL: new("ftp://x")}, {Level: new("")}, {Secret: new("none")}, {Applications: []string{""}}} {
		change.Off = new(false)
		if _, err := c.ChangeWebhook(t.Context(), "x", change); err == nil {
			t.Errorf("%+v is done", change)
		}
	}
	if w := webhookOf(t, c, "x"); fmt.Sprint(w) != fmt.Sprint(before) {
		t.Errorf("%+v, and before %+v", w, before)
	}
}

// The pauses grow, and have an end.
func TestWebhookPauses(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 10: longestPause, 1000: longestPause} {
		for range 100 {
			if got := pauseAfter(n); got > want || got < want*4/5 {
				t.Fatalf("after %d failures it is %v", n, got)
			}
		}
	}
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"tidemark"
	"tidemark/agent"
	"tidemark/client"
	"tidemark/control"
	"tidemark/mount"
)

// TestMain is also what the servers start as this program: with "agent" their agent, and with "attach" what attaches a disk. As anything else
// it ends at once: the tests, run by a server of the tests, would start servers without end.
func TestMain(m *testing.M) {
	processes := map[string]func(context.Context) error{"agent": agent.Run,
		"attach": func(ctx context.Context) error { return mount.RunAttacher(ctx, agent.DialDisk) }}
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		os.Exit(m.Run())
	}
	run := processes[os.Args[1]]
	if run == nil {
		fmt.Fprintln(os.Stderr, "the tests of the API are no", os.Args[1])
		os.Exit(1)
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// rig is a server that holds what it answers against the document.
type rig struct {
	t       *testing.T
	dir     string
	catalog string // its URL; empty: in dir
	changes int    // how many are kept; 0: as many as usual
	listen  string // where hosts are let in; empty: nowhere
	c       *control.Control
	http    *httptest.Server
	socket  string
	*client.Client
	check validator.Validator

	mu   sync.Mutex
	seen map[string]int // how often each operation was asked for, by method and path
}

func newRig(t *testing.T) *rig {
	t.Helper()
	x := &rig{t: t, dir: t.TempDir(), check: newValidator(t), seen: map[string]int{}}
	x.start()
	t.Cleanup(x.stop)
	return x
}

func newValidator(t *testing.T) validator.Validator {
	t.Helper()
	d, err := libopenapi.NewDocument(Document())
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(d)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return v
}

func (x *rig) start() {
	x.t.Helper()
	c, err := control.Open(context.Background(), control.Options{Dir: filepath.Join(x.dir, "data"), Logger: slog.New(slog.DiscardHandler), CacheBytes: 16 << 20, Catalog: x.catalog, Changes: x.changes, Listen: x.listen})
	if err != nil {
		x.t.Fatal(err)
	}
	x.c = c
	x.socket = filepath.Join(x.dir, "api.sock")
	l, err := net.Listen("unix", x.socket)
	if err != nil {
		x.t.Fatal(err)
	}
	s := newServer(c, slog.New(slog.DiscardHandler))
	x.http = httptest.NewUnstartedServer(x.watch(s))
	x.http.Listener = l
	x.http.Start()
	x.Client = client.New(x.socket)
}

func (x *rig) stop() {
	x.http.CloseClientConnections()
	x.http.Close()
	if err := x.c.Close(); err != nil {
		x.t.Error(err)
	}
}

// watch counts operations, and holds answers against the document.
func (x *rig) watch(s *server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keep := &copier{ResponseWriter: w}
		s.ServeHTTP(keep, r)
		x.mu.Lock()
		defer x.mu.Unlock()
		x.seen[r.Pattern]++
		if !strings.HasPrefix(keep.Header().Get("Content-Type"), "application/") || r.Pattern == "/" {
			return
		}
		answer := &http.Response{StatusCode: keep.status, Header: keep.Header(), Body: io.NopCloser(&keep.body)}
		if ok, errs := x.check.ValidateHttpResponse(r, answer); !ok {
			for _, e := range errs {
				x.t.Errorf("%s %s is answered with %d, which the document does not allow: %v", r.Method, r.URL, keep.status, e)
			}
		}
	})
}

// copier keeps what is answered.
type copier struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (c *copier) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *copier) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	c.body.Write(b)
	return c.ResponseWriter.Write(b)
}

func (c *copier) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// ask sends a request as it is.
func (x *rig) ask(method, path, body string, header ...string) (*http.Response, []byte) {
	x.t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", x.socket)
	}
	h := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	r, err := http.NewRequest(method, "http://tidemark"+path, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := h.Do(r)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return resp, text
}

// volume makes a volume.
func (x *rig) volume(name string) {
	x.t.Helper()
	if _, err := x.CreateVolume(context.Background(), tidemark.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
		x.t.Fatal(err)
	}
}

func decode[T any](t *testing.T, text []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// Package api serves what a server can do as resources over HTTP: GET /v1/applications/orders/points, POST /v1/clones.
//
// All of it is one table ([Document] is that table in the form of OpenAPI 3.1): an entry has the method and path of an operation, its
// request, its answer, its errors, and its rule, which says what action on which objects it is. What is read of a request
// is checked by the types of the root package, which are also what the answers are, and what the command prints with
// --json. Members and parameters that an operation does not have are refused.
//
//   - What is made is answered with 201, long work with 202 and the job, both with a Location; what has no answer with 204.
//   - An error is a problem of RFC 9457, a [tidemark.Problem]: 400 invalid, 403 denied, 404 not-found, 409 conflict and
//     cancelled, 503 unavailable, 500 corrupt and internal.
//   - A list is given in parts: a [tidemark.Page], which names the next one.
//   - A request that makes something, and has an Idempotency-Key, is done once, whoever asks how often.
//
// It is served at two places ([Handlers]). Whoever can open the server's own unix socket is its administrator. From the network, an API
// token or a session says who asks; what a rule wants is then decided by package access about the very values that the
// operation is given, lists have what he may see, and what changes something or was refused is in the audit. The client of it is
// package client; docs/api.md is its manual.
package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"tidemark"
	"tidemark/access"
	"tidemark/access/oidc"
	"tidemark/control"
)

// maxRequest bounds a request's body, in bytes.
const maxRequest = 1 << 20

// Handler answers the requests to a server at its own socket: whoever can open that is its administrator.
func Handler(c *control.Control, log *slog.Logger) http.Handler {
	socket, _ := Handlers(c, log, nil)
	return socket
}

// Handlers answer the requests to a server: at its own socket, and from the network, where everybody has to show the secret of an
// API token or a session. Users may log in at a provider, if there is one.
func Handlers(c *control.Control, log *slog.Logger, provider *oidc.Provider) (socket, network http.Handler) {
	s := newServer(c, log)
	s.provider = provider
	return s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), networkKey{}, true)))
	})
}

// networkKey is of a request that did not come by the socket.
type networkKey struct{}

// Document returns the OpenAPI document of the API.
func Document() []byte { return newServer(nil, slog.Default()).document }

type server struct {
	c        *control.Control
	log      *slog.Logger
	mux      *http.ServeMux
	api      huma.API
	table    map[string]operation // by id
	document []byte
	metrics  *metrics
	process  string // by which it knows the requests that it has begun itself

	passwords func() (*access.Passwords, error)
	limiter   *access.Limiter
	provider  *oidc.Provider // nil: none
	devices   devices
}

func newServer(c *control.Control, log *slog.Logger) *server {
	speakOurErrors()
	s := &server{c: c, log: log, mux: http.NewServeMux(), table: map[string]operation{}, metrics: newMetrics(c), process: rand.Text(),
		passwords: sync.OnceValues(func() (*access.Passwords, error) { return access.NewPasswords(0) }), limiter: access.NewLimiter(),
		devices: devices{shares: access.NewShares(mostDevices, devicesPerAddress), all: map[string]*device{}}}
	s.api = huma.NewAPI(config(), (*adapter)(s))
	for _, o := range table() {
		s.table[o.id] = o
		o.register(s, o.describe(s.api))
	}
	s.mux.HandleFunc("/", s.unknown)
	s.document = document(s.api)
	return s
}

// ServeHTTP implements [http.Handler].
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// adapter is how huma sees the server.
type adapter server

// Handle implements [huma.Adapter].
func (a *adapter) Handle(h *huma.Operation, answer func(huma.Context)) {
	(*server)(a).handle(h, func(w http.ResponseWriter, r *http.Request) { answer(humago.NewContext(h, r, w)) })
}

// ServeHTTP implements [huma.Adapter].
func (a *adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// handle makes the server answer an operation by next, with all around it that is the same for all operations.
func (s *server) handle(h *huma.Operation, next http.HandlerFunc) {
	o := s.table[h.OperationID]
	s.mux.HandleFunc(h.Method+" "+h.Path, func(w http.ResponseWriter, r *http.Request) {
		rec, begun := &recorder{ResponseWriter: w}, time.Now()
		defer func() { s.metrics.answered(o, rec.status, begun) }()
		var who *caller
		defer func() {
			if who != nil { // by now a panic was answered, too, and is no success
				s.audit(r.Context(), o, who, r.Method, rec.status)
			}
		}()
		defer s.recovered(rec, r)
		r.Body = http.MaxBytesReader(rec, r.Body, maxRequest)
		if !o.apart {
			leave := s.c.Enter()
			defer leave()
		}
		var err error
		if who, err = s.identify(o, r, r.Context().Value(networkKey{}) == nil); err != nil {
			s.unknownCaller(rec, err)
			return
		}
		ctx := context.WithValue(r.Context(), callerKey{}, who)
		r = r.WithContext(control.WithAsk(ctx, control.Ask{Queue: o.queues && takeQueue(r) == "true", By: who.principal.User, UserID: who.principal.UserID, Token: who.principal.Token}))
		if strings.Contains(r.URL.RawQuery, "%00") { // which no catalog can search for
			s.fail(rec, tidemark.Errorf(tidemark.Invalid, "the query has a NUL in it").WithHint("nothing has such a name: leave it out"))
			return
		}
		if o.once && r.Header.Get(keyHeader) != "" {
			s.once(o, rec, r, next)
			return
		}
		next(rec, r)
	})
}

// takeQueue takes from a request whether its job is to wait, which the framework does not know of.
func takeQueue(r *http.Request) string {
	q := r.URL.Query()
	queue := q.Get(queueParam)
	q.Del(queueParam)
	at := *r.URL
	at.RawQuery = q.Encode()
	r.URL = &at
	return queue
}

// unknownCaller answers who could not say who he is.
func (s *server) unknownCaller(w http.ResponseWriter, err error) {
	p := s.problem(err)
	if p.Status == http.StatusForbidden {
		w.Header().Set("WWW-Authenticate", "Bearer")
		p.Status = http.StatusUnauthorized
	}
	s.send(w, p.Status, tidemark.MediaProblem, p)
}

// recorder knows what was answered.
type recorder struct {
	http.ResponseWriter
	status int // 0: nothing yet
}

// WriteHeader implements [http.ResponseWriter].
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets [http.ResponseController] through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// recovered makes an error of a panic: one request's fault does not concern the others of its connection.
func (s *server) recovered(w *recorder, r *http.Request) {
	p := recover()
	switch {
	case p == nil:
	case w.status != 0: // most often the client went away while it was answered
		s.log.Warn("an answer was not sent whole", "path", r.URL.Path, "error", p)
	default:
		s.log.Error("a request panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		s.fail(w, tidemark.Errorf(tidemark.Internal, "a fault of Tidemark: %v", p).WithHint("please report it with the server's log"))
	}
}

// methods are those that operations have.
var methods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// unknown answers what is no operation.
func (s *server) unknown(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range methods {
		ask := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(ask); pattern != "/" && pattern != "" {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		s.fail(w, tidemark.Errorf(tidemark.NotFound, "this server knows no %s %s", r.Method, r.URL.Path).WithHint("is the client newer than the server? GET /openapi.json has all that there is"))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	e := tidemark.Errorf(tidemark.Invalid, "%s cannot be done with %s", r.Method, r.URL.Path).WithHint("it knows " + strings.Join(allowed, ", "))
	s.send(w, http.StatusMethodNotAllowed, tidemark.MediaProblem, e.Problem(http.StatusMethodNotAllowed))
}

// codes are the statuses of the kinds of errors.
var codes = map[tidemark.Kind]int{
	tidemark.Invalid: http.StatusBadRequest, tidemark.NotFound: http.StatusNotFound, tidemark.Conflict: http.StatusConflict,
	tidemark.Denied: http.StatusForbidden, tidemark.Unavailable: http.StatusServiceUnavailable, tidemark.Cancelled: http.StatusConflict,
	tidemark.Corrupt: http.StatusInternalServerError, tidemark.Internal: http.StatusInternalServerError,
}

// problem makes what is answered of an error.
func (s *server) problem(err error) *tidemark.Problem {
	e := control.Explain(err)
	code := codes[e.Kind]
	if code == http.StatusInternalServerError {
		s.log.Error("a request failed", "error", err)
	}
	return e.Problem(code)
}

func (s *server) fail(w http.ResponseWriter, err error) {
	p := s.problem(err)
	s.send(w, p.Status, tidemark.MediaProblem, p)
}

func (s *server) send(w http.ResponseWriter, code int, media string, v any) {
	w.Header().Set("Content-Type", media)
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("a client went away", "error", err)
	}
}

// speakOurErrors makes the errors of the framework, about requests that cannot be read, ours. The framework has one place for that.
var speakOurErrors = sync.OnceFunc(func() {
	huma.NewError = problemOf
	huma.NewErrorWithContext = func(_ huma.Context, status int, message string, errs ...error) huma.StatusError {
		return problemOf(status, message, errs...)
	}
})

// problemOf makes a problem of what the framework found. What is wrong with the content is no other status than what we find.
func problemOf(status int, message string, errs ...error) huma.StatusError {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	if status >= http.StatusInternalServerError {
		return tidemark.Errorf(tidemark.Internal, "%s", message).Problem(status)
	}
	for _, err := range errs {
		var e *tidemark.Error
		var d *huma.ErrorDetail
		switch {
		case errors.As(err, &e):
			return e.Problem(status)
		case errors.As(err, &d):
			message = d.Message
			if d.Location != "" {
				message = d.Location + ": " + d.Message
			}
		default:
			message = err.Error()
		}
		break
	}
	return tidemark.Errorf(tidemark.Invalid, "the request cannot be used: %s", message).WithHint("GET /openapi.json says how it has to be").Problem(status)
}

// statuses returns the statuses that an operation may be answered with if something is wrong, each once.
func (o operation) statuses() []int {
	list := []int{http.StatusInternalServerError}
	for _, k := range o.kinds() {
		if !slices.Contains(list, codes[k]) {
			list = append(list, codes[k])
		}
	}
	return list
}

// kinds are those of the errors that an operation may be answered with, besides those of every one: who has to be known may also be denied it.
func (o operation) kinds() []tidemark.Kind {
	list := slices.Clone(o.errors)
	if !o.rule.open && !slices.Contains(list, tidemark.Denied) {
		list = append(list, tidemark.Denied)
	}
	return list
}

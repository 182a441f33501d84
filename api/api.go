// Package api serves a server's verbs as JSON over HTTP: POST /v1/VERB with a
// request, answered with a result or with a [tidemark.Error]. It listens on
// the server's unix socket, which only its owner can open: whoever may ask may
// do everything, so nothing here asks who it is.
//
// Requests are the types of the root package's requests.go, or {"name": …}
// where a name or reference is all; members that a request does not have are
// refused. Results are what the command line prints with --json. The status is
// 200, or one of an error's kind: 400 invalid, 404 not-found, 409 conflict and
// cancelled, 403 denied, 503 unavailable, 500 corrupt and internal.
//
// Long work is a job: the answer is the job as it begins, and GET
// /v1/jobs/ID?wait=10s answers when it has ended, or with its progress when the
// time is up; DELETE cancels it. A job goes on when its client goes away. It is
// refused while its application is busy; with ?queue=true it waits instead.
//
// The client of it is package client. docs/cli.md shows each verb; why this is no
// framework is in docs/decisions.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"tidemark"
	"tidemark/control"
)

// maxRequest bounds a request's body, in bytes.
const maxRequest = 1 << 20

// maxWait bounds how long a request for a job waits.
const maxWait = 30 * time.Second

// Handler answers the requests to a server.
func Handler(c *control.Control, log *slog.Logger) http.Handler {
	h := &handler{mux: http.NewServeMux(), log: log, enter: c.Enter}
	h.routes(c)
	return h.mux
}

type handler struct {
	mux   *http.ServeMux
	log   *slog.Logger
	enter func() (leave func())
}

// name is the request of verbs that need just a name or a reference.
type name struct {
	Name string `json:"name"`
}

type none struct{}

func (h *handler) routes(c *control.Control) {
	verb(h, "status", func(ctx context.Context, _ none) (any, error) { return c.Status(ctx) })
	verb(h, "discover", func(ctx context.Context, r tidemark.DiscoverSpec) (any, error) { return c.Discover(ctx, r) })
	verb(h, "applications", func(ctx context.Context, _ none) (any, error) { return c.Applications(ctx) })
	verb(h, "protect", func(ctx context.Context, r tidemark.ProtectSpec) (any, error) { return c.Protect(ctx, r) })
	verb(h, "unprotect", func(ctx context.Context, r name) (any, error) { return none{}, c.Unprotect(ctx, r.Name) })
	verb(h, "resync", func(ctx context.Context, r name) (any, error) { return none{}, c.Resync(ctx, r.Name) })
	verb(h, "forget", func(ctx context.Context, r name) (any, error) { return none{}, c.Forget(ctx, r.Name) })
	verb(h, "capture", func(ctx context.Context, r tidemark.CaptureSpec) (any, error) { return c.Capture(ctx, r) })
	verb(h, "bookmark", func(ctx context.Context, r tidemark.BookmarkSpec) (any, error) { return c.Bookmark(ctx, r) })
	verb(h, "groups", func(ctx context.Context, _ none) (any, error) { return c.Groups(ctx) })
	verb(h, "group", func(ctx context.Context, r tidemark.GroupSpec) (any, error) { return c.ChangeGroup(ctx, r) })
	verb(h, "group-bookmark", func(ctx context.Context, r tidemark.BookmarkSpec) (any, error) { return c.BookmarkGroup(ctx, r) })
	verb(h, "group-restore", func(ctx context.Context, r tidemark.RestoreSpec) (any, error) { return c.RestoreGroup(ctx, r) })
	verb(h, "apply", func(ctx context.Context, r tidemark.ApplySpec) (any, error) {
		return c.Apply(ctx, []byte(r.Documents), r.DryRun)
	})
	verb(h, "sla", func(ctx context.Context, _ none) (any, error) { return c.Compliance(ctx) })
	verb(h, "sla-set", func(ctx context.Context, r tidemark.SLASpec) (any, error) {
		return none{}, c.SetSLA(ctx, r.Application, r.Template)
	})
	verb(h, "templates", func(ctx context.Context, _ none) (any, error) { return c.Templates(ctx) })
	verb(h, "template-rm", func(ctx context.Context, r name) (any, error) { return none{}, c.RemoveTemplate(ctx, r.Name) })
	verb(h, "hosts", func(ctx context.Context, _ none) (any, error) { return c.Hosts(ctx) })
	verb(h, "host-add", func(ctx context.Context, r tidemark.HostSpec) (any, error) { return c.AddHost(ctx, r) })
	verb(h, "host-set", func(ctx context.Context, r tidemark.HostChange) (any, error) { return none{}, c.SetHost(ctx, r) })
	verb(h, "host-rm", func(ctx context.Context, r tidemark.HostRemoval) (any, error) { return none{}, c.RemoveHost(ctx, r) })
	verb(h, "points", func(ctx context.Context, r name) (any, error) { return c.Points(ctx, r.Name) })
	verb(h, "expire", func(ctx context.Context, r name) (any, error) { return c.Expire(ctx, r.Name) })
	verb(h, "volumes", func(ctx context.Context, _ none) (any, error) { return c.Volumes(ctx) })
	verb(h, "volume", func(ctx context.Context, r name) (any, error) { return c.Volume(ctx, r.Name) })
	verb(h, "volume-create", func(ctx context.Context, r tidemark.VolumeSpec) (any, error) { return c.CreateVolume(ctx, r) })
	verb(h, "volume-import", func(ctx context.Context, r tidemark.ImportSpec) (any, error) { return c.ImportVolume(ctx, r) })
	verb(h, "volume-rm", func(ctx context.Context, r name) (any, error) { return none{}, c.RemoveVolume(ctx, r.Name) })
	verb(h, "exports", func(ctx context.Context, _ none) (any, error) { return c.Exports(ctx) })
	verb(h, "export", func(ctx context.Context, r tidemark.ExportSpec) (any, error) { return c.Export(ctx, r) })
	verb(h, "unexport", func(ctx context.Context, r name) (any, error) { return none{}, c.Unexport(ctx, r.Name) })
	verb(h, "mounts", func(ctx context.Context, _ none) (any, error) { return c.Mounts(ctx) })
	verb(h, "mount", func(ctx context.Context, r tidemark.MountSpec) (any, error) { return c.Mount(ctx, r) })
	verb(h, "unmount", func(ctx context.Context, r name) (any, error) { return none{}, c.Unmount(ctx, r.Name) })
	verb(h, "clones", func(ctx context.Context, _ none) (any, error) { return c.Clones(ctx) })
	verb(h, "clone", func(ctx context.Context, r tidemark.CloneSpec) (any, error) { return c.Clone(ctx, r) })
	verb(h, "clone-rm", func(ctx context.Context, r name) (any, error) { return none{}, c.RemoveClone(ctx, r.Name) })
	verb(h, "refresh", func(ctx context.Context, r tidemark.RefreshSpec) (any, error) { return c.Refresh(ctx, r) })
	verb(h, "rewind", func(ctx context.Context, r tidemark.RewindSpec) (any, error) { return c.Rewind(ctx, r) })
	verb(h, "prove", func(ctx context.Context, r tidemark.ProveSpec) (any, error) { return c.Prove(ctx, r) })
	verb(h, "restore", func(ctx context.Context, r tidemark.RestoreSpec) (any, error) { return c.Restore(ctx, r) })
	verb(h, "diff", func(ctx context.Context, r tidemark.DiffSpec) (any, error) { return c.Diff(ctx, r) })
	verb(h, "halve", func(ctx context.Context, r tidemark.HalveSpec) (any, error) { return c.Halve(ctx, r) })
	verb(h, "reclaim", func(ctx context.Context, _ none) (any, error) { return c.Reclaim(ctx) })
	verb(h, "verify", func(ctx context.Context, r name) (any, error) { return c.Verify(ctx, r.Name) })
	verb(h, "pool-import", func(ctx context.Context, r name) (any, error) { return c.ImportPool(ctx, r.Name) })
	verb(h, "jobs", func(ctx context.Context, r tidemark.JobFilter) (any, error) { return c.Jobs(ctx, r) })
	h.mux.HandleFunc("GET /v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		h.answer(w, r, func(id int64) (any, error) { return c.Job(r.Context(), id, waitOf(r)) })
	})
	h.mux.HandleFunc("DELETE /v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		h.answer(w, r, func(id int64) (any, error) { return none{}, c.CancelJob(r.Context(), id) })
	})
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.fail(w, r, tidemark.Errorf(tidemark.NotFound, "this server knows no %s %s", r.Method, r.URL.Path).WithHint("is the client newer than the server?"))
	})
}

func waitOf(r *http.Request) time.Duration {
	d, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil || d < 0 {
		return 0
	}
	return min(d, maxWait)
}

// verb makes POST /v1/name decode a request, and answer with what fn returns.
func verb[Req any](h *handler, name string, fn func(context.Context, Req) (any, error)) {
	h.mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		var req Req
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil && !errors.Is(err, io.EOF) {
			h.fail(w, r, tidemark.Errorf(tidemark.Invalid, "the request cannot be read: %w", err))
			return
		}
		leave := h.enter()
		defer leave()
		ctx := r.Context()
		if r.URL.Query().Get("queue") == "true" {
			ctx = control.WithAsk(ctx, control.Ask{Queue: true})
		}
		res, err := fn(ctx, req)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		h.send(w, http.StatusOK, res)
	})
}

// answer answers a request about the job of the path.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, fn func(id int64) (any, error)) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		h.fail(w, r, tidemark.Errorf(tidemark.Invalid, "%q is not the number of a job", r.PathValue("id")))
		return
	}
	res, err := fn(id)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	h.send(w, http.StatusOK, res)
}

var codes = map[tidemark.Kind]int{
	tidemark.Invalid: http.StatusBadRequest, tidemark.NotFound: http.StatusNotFound, tidemark.Conflict: http.StatusConflict,
	tidemark.Denied: http.StatusForbidden, tidemark.Unavailable: http.StatusServiceUnavailable, tidemark.Cancelled: http.StatusConflict,
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := control.Explain(err)
	code, ok := codes[e.Kind]
	if !ok {
		code = http.StatusInternalServerError
		h.log.Error("a request failed", "path", r.URL.Path, "error", err)
	}
	h.send(w, code, e)
}

func (h *handler) send(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.log.Debug("a client went away", "error", err)
	}
}

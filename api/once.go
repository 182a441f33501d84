package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/catalog"
)

// keyHeader is the header of draft-ietf-httpapi-idempotency-key-header. A request that makes something, and has it, is done once: who
// asks again is answered the same again.
const keyHeader = "Idempotency-Key"

// replayed is the header of an answer that was given before.
const replayed = "Idempotency-Replayed"

// bodyTime is how long a client has to send a body.
const bodyTime = 5 * time.Second

// maxKey bounds a key, in bytes.
const maxKey = 128

// parseKey reads the header: a string of RFC 8941, in quotes, or, as many send it, the same without quotes.
func parseKey(header string) (key string, err error) {
	key = header
	if inner, quoted := strings.CutPrefix(header, `"`); quoted {
		if key, err = unquote(inner); err != nil {
			return "", err
		}
	}
	if key == "" || len(key) > maxKey {
		return "", errKey
	}
	for _, b := range []byte(key) {
		if b < ' ' || b > '~' {
			return "", errKey
		}
	}
	return key, nil
}

// unquote reads a string of RFC 8941 behind its first quote.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"' && i == len(s)-1:
			return b.String(), nil
		case s[i] == '"':
			return "", errKey
		case s[i] == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", errKey
			}
		}
		b.WriteByte(s[i])
	}
	return "", errKey
}

var errKey = tidemark.Errorf(tidemark.Invalid, "the Idempotency-Key is none").WithHint(`send 1 to 128 printable characters in quotes, such as "8e03978e-40d5-43dd-bc93-6894a57f9324"`)

// once answers a request with a key: by next if it is the first, and else as the first was.
func (s *server) once(o operation, w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
	key, err := parseKey(r.Header.Get(keyHeader))
	if err != nil {
		s.fail(w, err)
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime)) // a connection has deadlines
	print, err := fingerprint(r)
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		s.fail(w, err)
		return
	}
	k := catalog.NewKey(ownKey(r.Context(), key), s.process)
	known, err := s.c.TakeKey(r.Context(), k, print)
	switch {
	case err != nil:
		callerOf(r.Context()).failure = err
		s.fail(w, err)
	case known == nil:
		s.first(o, k, w, r, next)
	case known.Fingerprint != print:
		e := tidemark.Errorf(tidemark.Invalid, "the Idempotency-Key was used for another request").WithHint("use each key for one request, and the same again")
		s.send(w, http.StatusUnprocessableEntity, tidemark.MediaProblem, e.Problem(http.StatusUnprocessableEntity))
	case known.Answer == nil && known.Server == s.process:
		s.fail(w, tidemark.Errorf(tidemark.Conflict, "the first request with this Idempotency-Key is not answered yet").WithHint("wait a moment, and ask again"))
	case known.Answer == nil:
		s.fail(w, tidemark.Errorf(tidemark.Conflict, "the server stopped during the first request with this Idempotency-Key: it is not known whether it was done").
			WithHint("look whether it was, and ask again with another key"))
	default:
		s.again(w, *known.Answer)
	}
}

// ownKey is a key as the catalog has it: each user has keys of his own, and none can tell or take those of another, also of one who had his
// name before. No name of a user has a slash or a space; the administrator at the socket has none.
func ownKey(ctx context.Context, key string) string {
	who := callerOf(ctx).principal
	return strings.TrimSpace(who.User+" "+who.UserID) + "/" + key
}

// again answers as the first request was.
func (s *server) again(w http.ResponseWriter, a catalog.Answer) {
	if a.Body == "" && a.Media != "" {
		s.fail(w, tidemark.Errorf(tidemark.Conflict, "this was done, and the answer had a secret, which is not kept").WithHint("ask with another key for another secret"))
		return
	}
	if a.Media != "" {
		w.Header().Set("Content-Type", a.Media)
	}
	if a.Location != "" {
		w.Header().Set("Location", a.Location)
	}
	w.Header().Set(replayed, "true")
	w.WriteHeader(a.Status)
	if _, err := io.WriteString(w, a.Body); err != nil {
		s.log.Debug("a client went away", "error", err)
	}
}

// first has the request with a key done, and keeps the answer. A fault of the server, what it lacks now, and what is not granted yet may be
// otherwise the next time: then nothing is kept. That is so too if it panics.
func (s *server) first(o operation, k catalog.Key, w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
	keep := &keeper{ResponseWriter: w}
	// The client may be gone; that what it asked for was done is recorded all the same.
	ctx := context.WithoutCancel(r.Context())
	kept := false
	defer func() {
		if !kept {
			s.c.ReleaseKey(ctx, k)
		}
	}()
	next(keep, r)
	keep.WriteHeader(http.StatusOK) // if there was nothing to be said
	if kept = keep.status < http.StatusInternalServerError && keep.status != http.StatusForbidden; !kept {
		keep.flush()
		return
	}
	a := catalog.Answer{Status: keep.status, Media: keep.Header().Get("Content-Type"), Location: keep.Header().Get("Location"), Body: keep.body.String()}
	if o.secret && a.Status < http.StatusBadRequest {
		a.Body = ""
	}
	s.c.Answered(ctx, k, a)
	keep.flush()
}

// keeper holds an answer back until it is recorded: what a client has seen, it sees again. Where it cannot be recorded now, who asks again is told to
// wait until it is, and, if the server ended before, that it is not known what was done.
type keeper struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// WriteHeader implements [http.ResponseWriter].
func (k *keeper) WriteHeader(status int) {
	if k.status == 0 {
		k.status = status
	}
}

// Write implements [http.ResponseWriter].
func (k *keeper) Write(b []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	return k.body.Write(b)
}

// Unwrap lets [http.ResponseController] through.
func (k *keeper) Unwrap() http.ResponseWriter { return k.ResponseWriter }

func (k *keeper) flush() {
	k.ResponseWriter.WriteHeader(k.status)
	_, _ = k.ResponseWriter.Write(k.body.Bytes()) // a client that went away asks again
}

// fingerprint says what is asked for, and leaves the body to be read once more.
func fingerprint(r *http.Request) (string, error) {
	body, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		body = append(body, 0) // it is refused where all large bodies are
	case err != nil:
		return "", tidemark.Errorf(tidemark.Invalid, "the request cannot be read: %w", err)
	}
	h := sha256.New()
	for _, part := range []string{callerOf(r.Context()).principal.String(), r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Content-Type")} {
		h.Write([]byte(part + "\n"))
	}
	h.Write(body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return hex.EncodeToString(h.Sum(nil)), nil
}

// keyParam is the header in the document.
func keyParam() *huma.Param {
	most := maxKey + 2
	return &huma.Param{Name: keyHeader, In: "header", Description: "A key of the client's choice, in quotes. A request with a key is done once: who asks again with the same key within a day is answered the same, with Idempotency-Replayed: true.",
		Schema: &huma.Schema{Type: huma.TypeString, MaxLength: &most}}
}

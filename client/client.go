// Package client asks a Tidemark server to do things. It has one method for each operation of package api. The command line is
// built on it, and on nothing else.
//
// A refusal is an error of type [tidemark.Error]. A list is an iterator, which asks for its parts as it is read; [Collect] makes a
// slice of it. What makes something is asked for with a key, and once more if the connection breaks: it is done once. Long work is answered by a [tidemark.Job]; [Result] waits for its end.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"tidemark"
)

// Client is a connection to a server. Its methods may be called concurrently.
type Client struct {
	at     string // where the server is, as people are told
	base   string // of URLs
	secret string // of an API token or a session; empty: none
	failed error  // why nothing can be asked for
	http   *http.Client
	// Queue lets jobs wait that cannot begin at once, because their application is busy. Else they are refused.
	Queue bool
}

// New returns a client of the server that listens on a unix socket. Nothing is connected yet.
func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{at: socket, base: "http://tidemark", http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Failing returns a client by which nothing can be asked for: each method returns an error.
func Failing(err error) *Client { return &Client{failed: err} }

// path makes a path of its parts; names become one part each, whatever is in them.
func path(format string, names ...string) string {
	parts := make([]any, len(names))
	for i, n := range names {
		parts[i] = url.PathEscape(n)
	}
	return fmt.Sprintf(format, parts...)
}

// do asks for an operation, with a request or nil, and decodes the answer into res, a pointer or nil.
func (c *Client) do(ctx context.Context, method, path string, req, res any) error {
	resp, err := c.send(ctx, method, path, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if res == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(res); err != nil {
		return tidemark.Errorf(tidemark.Internal, "the server's answer cannot be read: %w", err)
	}
	return nil
}

// send asks for an operation, and returns its answer, which is no error.
func (c *Client) send(ctx context.Context, method, path string, req any) (*http.Response, error) {
	return c.sendWith(ctx, method, path, req, "", "")
}

// sendWith is send with a header more, unless that is empty.
func (c *Client) sendWith(ctx context.Context, method, path string, req any, header, value string) (*http.Response, error) {
	if c.failed != nil {
		return nil, c.failed
	}
	var body io.Reader
	if req != nil {
		text, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if req != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if value != "" {
		r.Header.Set(header, value)
	}
	if c.secret != "" {
		r.Header.Set("Authorization", "Bearer "+c.secret)
	}
	if method == http.MethodPost {
		r.Header.Set("Idempotency-Key", `"`+rand.Text()+`"`)
	}
	resp, err := c.http.Do(r)
	if err != nil && method == http.MethodPost && broken(err) { // it may have been done: the key has it not done again
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		resp, err = c.http.Do(r)
	}
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, failureOf(resp)
	}
	return resp, nil
}

// broken reports whether a connection broke that had been made.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// failureOf returns the error that an answer tells of.
func failureOf(resp *http.Response) error {
	var p tidemark.Problem
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || media != tidemark.MediaProblem {
		return tidemark.Errorf(tidemark.Internal, "the server answered %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		return tidemark.Errorf(tidemark.Internal, "the server answered %s, which cannot be read: %w", resp.Status, err)
	}
	return p.Err()
}

func (c *Client) unreachable(err error) error {
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return tidemark.Errorf(tidemark.Denied, "the server at %s is not known", c.at).WithHint("name the certificate of its authority with --ca; `tidemark api authority` at its socket prints it")
	case strings.HasPrefix(c.base, "https:") && errors.Is(err, syscall.ECONNREFUSED):
		return tidemark.Errorf(tidemark.Unavailable, "no server listens on %s", c.at).WithHint("does it run with --listen?")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return tidemark.Errorf(tidemark.Unavailable, "no server listens on %s", c.at).
			WithHint("start one with `tidemark server --data DIR`, or name its socket with --socket or TIDEMARK_SOCKET")
	case errors.Is(err, os.ErrPermission):
		return tidemark.Errorf(tidemark.Denied, "you may not connect to %s", c.at).WithHint("run as the user of the server")
	case errors.Is(err, context.Canceled):
		return err
	}
	return tidemark.Errorf(tidemark.Unavailable, "the server on %s does not answer: %w", c.at, err)
}

// Package client asks a Tidemark server to do things. The command line is built
// on it, and on nothing else.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"tidemark"
)

// Client is a connection to a server. Its methods may be called concurrently.
type Client struct {
	socket string
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
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Do asks for a verb with a request and decodes the answer into res, a pointer or nil.
// A refusal is an error of type [tidemark.Error].
func (c *Client) Do(ctx context.Context, verb string, req, res any) error {
	if req == nil {
		req = struct{}{}
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	path := "/v1/" + verb
	if c.Queue {
		path += "?queue=true"
	}
	return c.send(ctx, http.MethodPost, path, body, res)
}

// Named is Do for verbs whose request is a name or a reference.
func (c *Client) Named(ctx context.Context, verb, name string, res any) error {
	return c.Do(ctx, verb, map[string]string{"name": name}, res)
}

// Run asks for a verb that is a job, waits for its end, and decodes its result.
// report, if not nil, is told the job as it goes on. If ctx is done, the job goes on without us.
func (c *Client) Run(ctx context.Context, verb string, req, res any, report func(tidemark.Job)) error {
	var j tidemark.Job
	if err := c.Do(ctx, verb, req, &j); err != nil {
		return err
	}
	return c.Wait(ctx, j.ID, res, report)
}

// pollEvery is how often progress is asked for.
const pollEvery = 300 * time.Millisecond

// Wait waits for a job to end and decodes its result.
func (c *Client) Wait(ctx context.Context, id int64, res any, report func(tidemark.Job)) error {
	for {
		var j struct {
			tidemark.Job
			Result json.RawMessage `json:"result"`
		}
		if err := c.send(ctx, http.MethodGet, fmt.Sprintf("/v1/jobs/%d?wait=%s", id, pollEvery), nil, &j); err != nil {
			return err
		}
		if report != nil {
			report(j.Job)
		}
		switch j.State {
		case tidemark.JobDone:
			if res == nil || len(j.Result) == 0 {
				return nil
			}
			return json.Unmarshal(j.Result, res)
		case tidemark.JobFailed, tidemark.JobCancelled:
			if j.Error == nil {
				return tidemark.Errorf(tidemark.Internal, "job %d is %s", id, j.State)
			}
			return j.Error
		}
	}
}

// Job returns a job as it is now.
func (c *Client) Job(ctx context.Context, id int64) (j tidemark.Job, err error) {
	err = c.send(ctx, http.MethodGet, fmt.Sprintf("/v1/jobs/%d", id), nil, &j)
	return j, err
}

// Cancel cuts a job.
func (c *Client) Cancel(ctx context.Context, id int64) error {
	return c.send(ctx, http.MethodDelete, fmt.Sprintf("/v1/jobs/%d", id), nil, nil)
}

func (c *Client) send(ctx context.Context, method, path string, body []byte, res any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://tidemark"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		e := new(tidemark.Error)
		if err := json.NewDecoder(resp.Body).Decode(e); err != nil {
			return tidemark.Errorf(tidemark.Internal, "the server answered %s", resp.Status)
		}
		return e
	}
	if res == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(res); err != nil {
		return tidemark.Errorf(tidemark.Internal, "the server's answer cannot be read: %w", err)
	}
	return nil
}

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return tidemark.Errorf(tidemark.Unavailable, "no server listens on %s", c.socket).
			WithHint("start one with `tidemark server --data DIR`, or name its socket with --socket or TIDEMARK_SOCKET")
	case errors.Is(err, os.ErrPermission):
		return tidemark.Errorf(tidemark.Denied, "you may not connect to %s", c.socket).WithHint("run as the user of the server")
	case errors.Is(err, context.Canceled):
		return err
	}
	return tidemark.Errorf(tidemark.Unavailable, "the server on %s does not answer: %w", c.socket, err)
}

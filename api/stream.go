package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"tidemark"
	"tidemark/control"
)

const (
	// lookEvery is how often a job is looked at for progress.
	lookEvery = 300 * time.Millisecond
	// sayEvery is how often something is said in a stream, so that who reads knows that it lives.
	sayEvery = 15 * time.Second
	// readTime is how long a client has to take what is sent.
	readTime = 30 * time.Second
)

// stream is an answer of server-sent events, as the HTML standard has them.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// streaming makes an answer that is sent as it comes. It ends when fn returns.
func streaming(fn func(context.Context, *stream) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(h huma.Context) {
		r, w := humago.Unwrap(h)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		s := &stream{w: w, rc: http.NewResponseController(w)}
		w.WriteHeader(http.StatusOK)
		if s.write("") == nil {
			_ = fn(r.Context(), s) // the client went away, or the server stops: nobody is left to be told
		}
	}}
}

// write sends text now.
func (s *stream) write(text string) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(readTime)); err != nil {
		return err
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.rc.Flush()
}

// send sends an event with an ID, where it has one, and its data as JSON, which has no line ends.
func (s *stream) send(event string, id int64, data []byte) error {
	head := ""
	if id > 0 {
		head = fmt.Sprintf("id: %d\n", id)
	}
	return s.write(fmt.Sprintf("%sevent: %s\ndata: %s\n\n", head, event, data))
}

// live says that the stream lives.
func (s *stream) live() error { return s.write(":\n\n") }

// followJob sends a job as it goes on, and at last as it has ended.
func followJob(ctx context.Context, c *control.Control, in *ByID) (*huma.StreamResponse, error) {
	j, err := c.Job(ctx, in.ID, 0)
	if err != nil {
		return nil, err
	}
	return streaming(func(ctx context.Context, s *stream) error { return s.job(ctx, c, j) }), nil
}

func (s *stream) job(ctx context.Context, c *control.Control, j tidemark.Job) error {
	var sent []byte
	for said := time.Now(); ; {
		if err := hideWay(ctx, c, &j); err != nil {
			return err
		}
		now, err := json.Marshal(j)
		if err != nil {
			return err
		}
		switch j.State {
		case tidemark.JobDone, tidemark.JobFailed, tidemark.JobCancelled:
			return s.send("end", 0, now)
		}
		switch {
		case !bytes.Equal(now, sent):
			err, sent, said = s.send("progress", 0, now), now, time.Now()
		case time.Since(said) > sayEvery:
			err, said = s.live(), time.Now()
		}
		if err != nil {
			return err
		}
		looked := time.Now()
		if j, err = c.Job(ctx, j.ID, lookEvery); err != nil {
			return err
		}
		if j.Finished != nil {
			continue
		}
		select { // one that does not run here is not waited for by Job
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery - time.Since(looked)):
		}
	}
}

// ofStream is a request for events as they come.
type ofStream struct {
	Last string `header:"Last-Event-ID" maxLength:"20" doc:"The id of the last event that is known: the stream begins behind it. Without it, with the next event."`
}

// eventsAtOnce is how many events are read from the catalog at once.
const eventsAtOnce = 200

// followEvents sends events of the server as they come.
func followEvents(ctx context.Context, c *control.Control, in *ofStream) (*huma.StreamResponse, error) {
	after, err := strconv.ParseInt(in.Last, 10, 64)
	switch {
	case in.Last == "":
		newest, err := c.EventsBefore(ctx, 0, 1)
		if err != nil {
			return nil, err
		}
		if len(newest) > 0 {
			after = newest[0].ID
		}
	case err != nil || after < 0:
		return nil, tidemark.Errorf(tidemark.Invalid, "Last-Event-ID is %q, which is the number of no event", in.Last).WithHint("send the id of an event, or leave it out")
	}
	return streaming(func(ctx context.Context, s *stream) error { return s.events(ctx, c, after) }), nil
}

func (s *stream) events(ctx context.Context, c *control.Control, after int64) error {
	for {
		next := c.EventRecorded()
		list, err := c.EventsAfter(ctx, after, eventsAtOnce)
		if err != nil {
			return err
		}
		seen, err := seenEvents(ctx, c, list)
		if err != nil {
			return err
		}
		for _, e := range seen {
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if err := s.send(e.Level, e.ID, data); err != nil {
				return err
			}
		}
		if len(list) > 0 {
			after = list[len(list)-1].ID
			continue
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(sayEvery):
			if err := s.live(); err != nil {
				return err
			}
		}
	}
}

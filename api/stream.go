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
	"tidemark/access"
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
	w   http.ResponseWriter
	rc  *http.ResponseController
	say time.Duration // sayEvery
}

// streaming makes an answer that is sent as it comes. It ends when fn returns.
func streaming(fn func(context.Context, *stream) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(h huma.Context) {
		r, w := humago.Unwrap(h)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		s := &stream{w: w, rc: http.NewResponseController(w), say: sayEvery}
		w.WriteHeader(http.StatusOK)
		if s.write("") == nil {
			_ = fn(r.Context(), s) // the client went away, or may not read on, or the server stops: nobody is left to be told
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
	text := ""
	if id > 0 {
		text = formatInt(id)
	}
	return s.sendAs(event, text, data)
}

// sendAs is send for an ID that is no number; empty: there is none.
func (s *stream) sendAs(event, id string, data []byte) error {
	head := ""
	if id != "" {
		head = "id: " + id + "\n"
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
		now, err := json.Marshal(j)
		if err != nil {
			return err
		}
		event := ""
		switch {
		case j.State == tidemark.JobDone, j.State == tidemark.JobFailed, j.State == tidemark.JobCancelled:
			event = "end"
		case !bytes.Equal(now, sent):
			event = "progress"
		}
		if event != "" || time.Since(said) > s.say {
			if err := s.sayJob(ctx, c, j, event); err != nil || event == "end" {
				return err
			}
			sent, said = now, time.Now()
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

// sayJob sends a job to who may still see it, as an event or, without one, that the stream lives.
func (s *stream) sayJob(ctx context.Context, c *control.Control, j tidemark.Job, event string) error {
	ctx, err := renewed(ctx, c, access.JobView, access.KindJob, formatInt(j.ID))
	if err != nil {
		return err
	}
	if event == "" {
		return s.live()
	}
	if err := hideWay(ctx, c, &j); err != nil {
		return err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return s.send(event, 0, text)
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
		if len(list) > 0 {
			if err := s.sayEvents(ctx, c, list); err != nil {
				return err
			}
			after = list[len(list)-1].ID
			continue
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.say):
			if err := s.sayEvents(ctx, c, nil); err != nil {
				return err
			}
		}
	}
}

// sayEvents sends events to who may still see them, or, if there are none, that the stream lives.
func (s *stream) sayEvents(ctx context.Context, c *control.Control, list []tidemark.Event) error {
	ctx, err := renewed(ctx, c, access.ServerView, access.KindServer, "")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return s.live()
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
	return nil
}

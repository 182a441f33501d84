package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tidemark"
)

// message is a server-sent event.
type message struct {
	event string
	data  string
}

// messages reads the server-sent events of an answer until it ends.
func messages(r io.Reader) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		var m message
		var data []string
		for in := bufio.NewReader(r); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				yield(message{}, err)
				return
			}
			field, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "event":
				m.event = value
			case "data":
				data = append(data, value)
			}
			if strings.TrimRight(line, "\r\n") != "" || data == nil {
				continue
			}
			m.data = strings.Join(data, "\n")
			if !yield(m, nil) {
				return
			}
			m, data = message{}, nil
		}
	}
}

// follow tells of a job as it goes on, until it has ended, and returns it. It fails if the connection does.
func (c *Client) follow(ctx context.Context, id int64, report func(tidemark.Job)) (j job, err error) {
	resp, err := c.send(ctx, http.MethodGet, jobPath(id)+"/events", nil)
	if err != nil {
		return j, err
	}
	defer resp.Body.Close()
	for m, err := range messages(resp.Body) {
		if err != nil {
			return j, err
		}
		j = job{}
		if err := json.Unmarshal([]byte(m.data), &j); err != nil {
			return j, err
		}
		if report != nil {
			report(j.Job)
		}
		if m.event == "end" {
			return j, nil
		}
	}
	return j, io.ErrUnexpectedEOF
}

// Follow lists what happens from now on, as it happens, or, with the number of an event, all that has happened since that one. It
// goes on until ctx is done or the connection breaks; then who asks again with the number of the last event misses none.
func (c *Client) Follow(ctx context.Context, after int64) iter.Seq2[tidemark.Event, error] {
	return func(yield func(tidemark.Event, error) bool) {
		header := ""
		if after > 0 {
			header = strconv.FormatInt(after, 10)
		}
		resp, err := c.sendWith(ctx, http.MethodGet, "/v1/events/stream", nil, "Last-Event-ID", header)
		if err != nil {
			yield(tidemark.Event{}, err)
			return
		}
		defer resp.Body.Close()
		for m, err := range messages(resp.Body) {
			var e tidemark.Event
			if err == nil {
				err = json.Unmarshal([]byte(m.data), &e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// FollowChanges lists what changes on timelines, as it changes. The first message is a sync, unless it goes on behind the change that f names: then all
// that comes behind that is told, or a sync says that it cannot be. It goes on until ctx is done or the connection breaks.
func (c *Client) FollowChanges(ctx context.Context, f tidemark.ChangeFilter) iter.Seq2[tidemark.ChangeMessage, error] {
	return func(yield func(tidemark.ChangeMessage, error) bool) {
		q := url.Values{}
		if f.Application != "" {
			q.Set("application", f.Application)
		}
		if f.Advances {
			q.Set("advances", "true")
		}
		path := "/v1/timelines/changes"
		if len(q) > 0 {
			path += "?" + q.Encode()
		}
		resp, err := c.sendWith(ctx, http.MethodGet, path, nil, "Last-Event-ID", f.After)
		if err != nil {
			yield(tidemark.ChangeMessage{}, err)
			return
		}
		defer resp.Body.Close()
		for m, err := range messages(resp.Body) {
			var got tidemark.ChangeMessage
			if err == nil {
				got, err = changeMessage(m)
			}
			if err == nil && got == (tidemark.ChangeMessage{}) {
				continue // a message of a newer server
			}
			if !yield(got, err) || err != nil {
				return
			}
		}
	}
}

// changeMessage reads a message of a stream of changes.
func changeMessage(m message) (got tidemark.ChangeMessage, err error) {
	var into any
	switch m.event {
	case "change":
		got.Change = &tidemark.TimelineChange{}
		into = got.Change
	case "sync":
		got.Sync = &tidemark.Sync{}
		into = got.Sync
	case "advance":
		got.Advance = &tidemark.Advance{}
		into = got.Advance
	default:
		return got, nil
	}
	return got, json.Unmarshal([]byte(m.data), into)
}

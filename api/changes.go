package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// Messages of a stream of changes.
const (
	changeEvent  = "change"
	syncEvent    = "sync"
	advanceEvent = "advance"
)

func followingChanges() operation {
	o := operation{id: "follow-changes", method: http.MethodGet, path: "/v1/timelines/changes", tag: "Applications", summary: "Changes of timelines, as they happen",
		description: "Server-sent events without end: change, each a TimelineChange as data and its id; sync, when what was read before says nothing any more and lists have to be asked for again; and, if asked for, advance. Last-Event-ID resumes.",
		status:      http.StatusOK, errors: missing, apart: true, stream: true,
		sends: map[string]reflect.Type{changeEvent: reflect.TypeFor[tidemark.TimelineChange](), syncEvent: reflect.TypeFor[tidemark.Sync](), advanceEvent: reflect.TypeFor[tidemark.Advance]()},
		rule:  may(access.ServerView, access.KindServer).where("query.application", access.ApplicationPoints, access.KindApplication, "query.application")}
	return with(o, followChanges)
}

// ofChanges is a request for changes as they come.
type ofChanges struct {
	Last        string `header:"Last-Event-ID" maxLength:"64" doc:"The id of the last message that is known: the stream begins behind it, or with a sync. Without it, with a sync."`
	Application string `query:"application" doc:"Only of this application, volume, clone or mount, and that clones and mounts of it were made and removed."`
	Advances    bool   `query:"advances" doc:"Also tell, at most once a second of each, how far timelines have come."`
}

// followChanges sends changes as they come.
func followChanges(ctx context.Context, c *control.Control, in *ofChanges) (*huma.StreamResponse, error) {
	if in.Application != "" {
		if err := c.Known(in.Application); err != nil {
			return nil, err
		}
	}
	if err := control.CheckChangeID(in.Last); err != nil {
		return nil, err
	}
	return streaming(func(ctx context.Context, s *stream) error { return s.changes(ctx, c, in) }), nil
}

// changesAtOnce is how many changes are decided about at once.
const changesAtOnce = 100

// changing is a stream of changes.
type changing struct {
	*stream
	c    *control.Control
	in   *ofChanges
	f    *control.Follower
	who  *caller   // who that was found to be last
	said time.Time // when something was said last
	look uint64    // at how far timelines have come
}

func (s *stream) changes(ctx context.Context, c *control.Control, in *ofChanges) error {
	f, err := c.FollowChanges(in.Last)
	if err != nil {
		return err
	}
	defer f.Close()
	x := &changing{stream: s, c: c, in: in, f: f, who: callerOf(ctx), said: time.Now()}
	pause := s.say
	if in.Advances {
		_, x.look = c.Advances(0)
		pause = min(pause, control.AdvanceEvery)
	}
	for {
		list, again, wake := f.Next(changesAtOnce)
		switch {
		case again != nil:
			err = x.sync(ctx, again)
		case len(list) > 0:
			err = x.tell(ctx, list)
		default:
			err = x.wait(ctx, wake, pause)
		}
		if err != nil {
			return err
		}
	}
}

// wait waits for a change. Meanwhile it says how far timelines have come, and that the stream lives.
func (x *changing) wait(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-time.After(pause):
	}
	if x.in.Advances {
		var list []control.Advanced
		if list, x.look = x.c.Advances(x.look); len(list) > 0 {
			if err := x.advance(ctx, list); err != nil {
				return err
			}
		}
	}
	if time.Since(x.said) < x.say {
		return nil
	}
	if _, err := x.now(ctx); err != nil {
		return err
	}
	x.said = time.Now()
	return x.live()
}

// now is ctx with who reads as he is now, or an error if he may not read on. If he may see more or less than before, all is to be looked at again.
func (x *changing) now(ctx context.Context) (context.Context, error) {
	ctx, err := renewed(ctx, x.c, access.ServerView, access.KindServer, "")
	if err != nil {
		return ctx, err
	}
	who, before := callerOf(ctx), x.who
	x.who = who
	if !reflect.DeepEqual(who.grants, before.grants) || !slices.Equal(who.principal.Groups, before.principal.Groups) {
		x.f.LookAgain(tidemark.SyncRights)
	}
	if x.in.Application == "" {
		return ctx, nil
	}
	if tidemark.KindOf(x.c.Known(x.in.Application)) == tidemark.NotFound {
		return ctx, nil // that it was removed is still to be told to who saw it
	}
	o, err := x.c.Object(ctx, access.KindApplication, x.in.Application)
	if err != nil {
		return ctx, err
	}
	return ctx, access.Decide(who.principal, who.grants, access.ApplicationPoints, o).Err()
}

func (x *changing) sync(ctx context.Context, again *tidemark.Sync) error {
	if _, err := x.now(ctx); err != nil {
		return err
	}
	return x.sendJSON(syncEvent, again.ID, again)
}

// tell sends changes to who may see them.
func (x *changing) tell(ctx context.Context, list []control.Told) error {
	list = slices.DeleteFunc(list, func(t control.Told) bool { return !x.wants(t) })
	if len(list) == 0 {
		return nil
	}
	ctx, err := x.now(ctx)
	if err != nil {
		return err
	}
	for _, t := range list {
		ok, err := x.sees(ctx, seeing(t.Kind), t.Timeline)
		if err == nil && ok {
			err = x.sendJSON(changeEvent, t.ID, t.TimelineChange)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *changing) advance(ctx context.Context, list []control.Advanced) error {
	list = slices.DeleteFunc(list, func(a control.Advanced) bool { return x.in.Application != "" && a.Application != x.in.Application })
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b control.Advanced) int { return cmp.Compare(a.Application, b.Application) })
	ctx, err := x.now(ctx)
	if err != nil {
		return err
	}
	for _, a := range list {
		ok, err := x.sees(ctx, access.ApplicationPoints, a.Timeline)
		if err == nil && ok {
			err = x.sendJSON(advanceEvent, "", a.Advance)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wants reports whether a change was asked for.
func (x *changing) wants(t control.Told) bool {
	of, _, _ := strings.Cut(t.Of, "@")
	return x.in.Application == "" || t.Application == x.in.Application || of == x.in.Application
}

// sees reports whether who asks may do an action to what has a timeline, or had it when it was removed.
func (x *changing) sees(ctx context.Context, a access.Action, timeline string) (bool, error) {
	o, known, err := x.c.OfTimeline(ctx, timeline)
	if err != nil || !known {
		return false, err
	}
	who := callerOf(ctx)
	return access.Visible(who.principal, who.grants, a).Shows(o), nil
}

// seeing is the action that has to be allowed to see a change: that of the list which shows it.
func seeing(k tidemark.ChangeKind) access.Action {
	switch k {
	case tidemark.ApplicationMade, tidemark.ApplicationRemoved, tidemark.ApplicationRewound, tidemark.ApplicationRestored:
		return access.ApplicationView
	case tidemark.CloneMade, tidemark.CloneRemoved:
		return access.CloneView
	case tidemark.MountMade, tidemark.MountRemoved:
		return access.MountView
	}
	return access.ApplicationPoints
}

func (x *changing) sendJSON(event, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	x.said = time.Now()
	return x.sendAs(event, id, data)
}

package api

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tidemark"
	"tidemark/control"
)

// Listing says which part of a list is asked for.
type Listing struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most so many entries."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"Where the part begins: next of the part before. Without it, the list begins."`
}

// ofNamesList is a request for a part of a list of something that has a name.
type ofNamesList struct {
	Name name `path:"name" doc:"Its name."`
	Listing
}

// A cursor is the path of its list and the key of the last entry that was given, so that entries that come or go change nothing
// for the others, and a cursor of one list is none of another. Clients are not to know that.

// cursorVersion is what the inside of a cursor begins with.
const cursorVersion = "1"

func encodeCursor(list, key string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + "\n" + list + "\n" + key))
}

// decodeCursor returns the key of the entry behind which a part begins. That of the first part is empty.
func decodeCursor(list, cursor string) (key string, err error) {
	if cursor == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	rest, ours := strings.CutPrefix(string(text), cursorVersion+"\n"+list+"\n")
	if err != nil || !ours || rest == "" || strings.Contains(rest, "\x00") { // which no catalog can search for
		return "", errCursor
	}
	return rest, nil
}

// number reads a cursor whose key is a number. That of the first part is 0.
func (l Listing) number(list string) (uint64, error) {
	key, err := decodeCursor(list, l.Cursor)
	if err != nil || key == "" {
		return 0, err
	}
	n, err := strconv.ParseUint(key, 10, 63)
	if err != nil {
		return 0, errCursor
	}
	return n, nil
}

var errCursor = tidemark.Errorf(tidemark.Invalid, "the cursor is none of this list").WithHint("give next of the part before, as it is, or leave it out")

// next returns the cursor of the part behind an entry with a key, and the link to it. also are the other parameters of the list.
func (l Listing) next(list string, also url.Values, key string) (cursor, link string) {
	cursor = encodeCursor(list, key)
	q := url.Values{"limit": {strconv.Itoa(l.Limit)}, "cursor": {cursor}}
	for k, v := range also {
		q[k] = v
	}
	return cursor, "<" + list + "?" + q.Encode() + `>; rel="next"`
}

// also are the other parameters of a list, of which those that are empty are none: key, value, key, value …
func also(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// cut makes an answer of the entries of a part, of which there is one more than is wanted if it is not the last part. key is that
// by which an entry is found again.
func cut[T any](l Listing, list string, also url.Values, entries []T, key func(T) string) *paged[T] {
	p := &paged[T]{Body: tidemark.Page[T]{Items: entries}}
	if p.Body.Items == nil {
		p.Body.Items = []T{}
	}
	if len(entries) > l.Limit {
		p.Body.Items = entries[:l.Limit]
		p.Body.Next, p.Link = l.next(list, also, key(entries[l.Limit-1]))
	}
	return p
}

// list makes o answer with a part of what fn returns, in the order of names.
func list[T any](o operation, nameOf func(T) string, fn func(context.Context, *control.Control) ([]T, error)) operation {
	o.status, o.filtered = http.StatusOK, true
	return with(o, func(ctx context.Context, c *control.Control, in *Listing) (*paged[T], error) {
		after, err := decodeCursor(o.path, in.Cursor)
		if err != nil {
			return nil, err
		}
		all, err := fn(ctx, c)
		if err != nil {
			return nil, err
		}
		if all, err = visible(ctx, c, o.rule.needs[0].action, o.rule.needs[0].kind, all, nameOf); err != nil {
			return nil, err
		}
		slices.SortStableFunc(all, func(a, b T) int { return strings.Compare(nameOf(a), nameOf(b)) })
		return cut(*in, o.path, nil, behind(*in, all, after, func(v T, name string) int { return strings.Compare(nameOf(v), name) }), nameOf), nil
	})
}

// behind returns the entries of a part, and one more, of a list in an order: those behind the key after. compare compares an entry with a key.
func behind[T, K any](l Listing, all []T, after K, compare func(T, K) int) []T {
	i, found := slices.BinarySearchFunc(all, after, compare)
	if found {
		i++
	}
	return all[i:min(len(all), i+l.Limit+1)]
}

// points answers with a part of the points of an application, oldest first.
func points(ctx context.Context, c *control.Control, in *ofNamesList) (*paged[tidemark.RecoveryPoint], error) {
	at := "/v1/applications/" + string(in.Name) + "/points"
	after, err := in.number(at)
	if err != nil {
		return nil, err
	}
	from := tidemark.Position(after)
	if in.Cursor != "" {
		from++
	}
	entries, err := c.PointsFrom(ctx, string(in.Name), from, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return cut(in.Listing, at, nil, entries, func(p tidemark.RecoveryPoint) string { return strconv.FormatUint(uint64(p.Position), 10) }), nil
}

// proofs answers with a part of the proofs of an application's points that are not kept, newest first.
func proofs(ctx context.Context, c *control.Control, in *ofNamesList) (*paged[tidemark.Proof], error) {
	at := "/v1/applications/" + string(in.Name) + "/proofs"
	key, err := decodeCursor(at, in.Cursor)
	if err != nil {
		return nil, err
	}
	all, err := c.Moments(ctx, string(in.Name))
	if err != nil {
		return nil, err
	}
	return proofPart(in.Listing, at, all, key), nil
}

// proofPart is the part of proofs, newest first, behind the one with a key, or the first one if that is empty.
func proofPart(l Listing, at string, all []tidemark.Proof, after string) *paged[tidemark.Proof] {
	slices.SortFunc(all, func(a, b tidemark.Proof) int { return strings.Compare(proofKey(b), proofKey(a)) })
	if after != "" {
		all = behind(l, all, after, func(p tidemark.Proof, key string) int { return strings.Compare(key, proofKey(p)) })
	}
	return cut(l, at, nil, all, proofKey)
}

// proofKey is when a proof was made, and the position that it is of: as texts they have the order of both.
func proofKey(p tidemark.Proof) string {
	return fmt.Sprintf("%s %020d", p.At.UTC().Format("2006-01-02T15:04:05.000000000"), uint64(p.Position))
}

// seenOf returns n entries, or all if there are fewer, of parts that are read one after the other and have what may be seen.
func seenOf[T any](n int, next func() (part []T, more bool, err error)) (all []T, err error) {
	for len(all) < n {
		part, more, err := next()
		if err != nil {
			return nil, err
		}
		if all = append(all, part...); !more {
			break
		}
	}
	return all[:min(n, len(all))], nil
}

// ofJobs is a request for a part of the list of jobs.
type ofJobs struct {
	Listing
	States      []tidemark.JobState `query:"state,explode" enum:"queued,running,done,failed,cancelled" doc:"Only jobs in one of these states."`
	Kind        string              `query:"kind" doc:"Only jobs of this kind, such as capture."`
	Application string              `query:"application" doc:"Only jobs of this application."`
}

// jobs answers with a part of the jobs, newest first.
func jobs(ctx context.Context, c *control.Control, in *ofJobs) (*paged[tidemark.Job], error) {
	const at = "/v1/jobs"
	before, err := in.number(at)
	if err != nil {
		return nil, err
	}
	f := tidemark.JobFilter{States: in.States, Kind: in.Kind, Application: in.Application, Before: int64(before), Limit: in.Limit + 1}
	entries, err := seenOf(in.Limit+1, func() ([]tidemark.Job, bool, error) {
		list, err := c.Jobs(ctx, f)
		if len(list) > 0 {
			f.Before = list[len(list)-1].ID
		}
		more := len(list) == f.Limit
		if err == nil {
			list, err = seenJobs(ctx, c, list)
		}
		return list, more, err
	})
	if err != nil {
		return nil, err
	}
	parts := also("kind", in.Kind, "application", in.Application)
	for _, s := range in.States {
		parts.Add("state", string(s))
	}
	return cut(in.Listing, at, parts, entries, func(j tidemark.Job) string { return strconv.FormatInt(j.ID, 10) }), nil
}

// events answers with a part of the events, newest first.
func events(ctx context.Context, c *control.Control, in *Listing) (*paged[tidemark.Event], error) {
	const at = "/v1/events"
	before, err := in.number(at)
	if err != nil {
		return nil, err
	}
	from := int64(before)
	entries, err := seenOf(in.Limit+1, func() ([]tidemark.Event, bool, error) {
		list, err := c.EventsBefore(ctx, from, in.Limit+1)
		if len(list) > 0 {
			from = list[len(list)-1].ID
		}
		more := len(list) == in.Limit+1
		if err == nil {
			list, err = seenEvents(ctx, c, list)
		}
		return list, more, err
	})
	if err != nil {
		return nil, err
	}
	return cut(*in, at, nil, entries, func(e tidemark.Event) string { return strconv.FormatInt(e.ID, 10) }), nil
}

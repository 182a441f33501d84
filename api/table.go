package api

import (
	"context"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// operation is one entry of the table: all that is known of one method on one path.
type operation struct {
	id           string
	method, path string
	tag          string
	summary      string
	description  string
	status       int             // of an answer that is no error
	errors       []tidemark.Kind // that it may be answered with, besides those of every operation
	rule         rule
	once         bool                    // it makes something: a request with a key is done once
	secret       bool                    // its answer has a secret, which is not kept for who asks again
	stream       bool                    // its answer is a stream of events
	sends        map[string]reflect.Type // the data of these events, by their names, where the document says it
	queues       bool                    // its jobs wait if that is asked for
	filtered     bool                    // its answer has what who asks may see, and no more
	apart        bool                    // it needs no stores, and does not wait while they are opened anew

	input  reflect.Type // the request, as it is read; nil: none
	result reflect.Type // of the job that it begins
	// register makes the server answer it, by what h says of it.
	register func(s *server, h huma.Operation)
}

// rule says what has to be allowed for an operation: all of it.
type rule struct {
	needs []need
	open  bool // nobody is asked who he is
	self  bool // whoever is known may do it: it is about himself
}

// need is an action that has to be allowed on all of some objects. Their names are in parts of the request: path.name, query.host,
// body.ref, of which APP@POINT names APP and the point, or body.join, which is a list. Without a part it is all that there is
// of the kind or, of a list, each that is shown.
type need struct {
	action access.Action
	kind   access.Kind
	from   []string
	only   string        // a part of the request: without it, there is no need
	volume access.Action // what is needed instead, if it is an application and no copy
	// steps: it is about all that the steps of the workflow are about that is asked to be run, and these have to be allowed as well.
	steps bool
	// source: it is about what the clones of these names are of, as that is now.
	source bool
	// members: it is about the members of the consistency groups of these names.
	members bool
	// workflows: the parts are documents, and it is about the workflows that they describe. If there are none, there is no need.
	workflows bool
}

// open is the rule of what everybody may be told, and self of what everybody who is known may do to himself.
var open, self = rule{open: true}, rule{self: true}

// may is the rule that somebody may do something.
func may(a access.Action, k access.Kind, from ...string) rule {
	return rule{needs: []need{{action: a, kind: k, from: from}}}
}

// mayRun is the rule that somebody may run the workflow that a request names.
func mayRun() rule {
	return rule{needs: []need{{action: access.WorkflowRun, kind: access.KindApplication, steps: true}}}
}

// orOf says what is needed instead if the object is an application, and no copy of one.
func (r rule) orOf(a access.Action) rule {
	needs := slices.Clone(r.needs)
	needs[len(needs)-1].volume = a
	return rule{needs: needs}
}

// ofSource adds what has to be allowed as well on what a clone is of, if the request has a part, or always, if none is named.
func (r rule) ofSource(a access.Action, only, from string) rule {
	return rule{needs: append(slices.Clone(r.needs), need{action: a, kind: access.KindApplication, from: []string{from}, only: only, source: true})}
}

// and adds what has to be allowed as well.
func (r rule) and(a access.Action, k access.Kind, from ...string) rule {
	return rule{needs: append(slices.Clone(r.needs), need{action: a, kind: k, from: from})}
}

// mayToAll is the rule that somebody may do something to all members of the group that a part of the request names.
func mayToAll(a access.Action, from string) rule {
	return rule{needs: []need{{action: a, kind: access.KindApplication, from: []string{from}, members: true}}}
}

// ofWorkflows adds what has to be allowed as well on the workflows that the documents in a part of the request describe.
func (r rule) ofWorkflows(a access.Action, from string) rule {
	return rule{needs: append(slices.Clone(r.needs), need{action: a, kind: access.KindWorkflow, from: []string{from}, workflows: true})}
}

// where adds what has to be allowed as well if the request has a part.
func (r rule) where(part string, a access.Action, k access.Kind, from ...string) rule {
	return rule{needs: append(slices.Clone(r.needs), need{action: a, kind: k, from: from, only: part})}
}

// What is read of a request.
type (
	none struct{}

	// ByName is a request about something with a name. That it is exported lets the framework see it within others.
	ByName struct {
		Name name `path:"name" doc:"Its name."`
	}

	ofBody[T any] struct {
		Body T
	}

	ofNameAndBody[T any] struct {
		Name name `path:"name" doc:"Its name."`
		Body T
	}

	// ofNameAndMore is ofNameAndBody of a body that may be missing.
	ofNameAndMore[T any] struct {
		Name name `path:"name" doc:"Its name."`
		Body *T
	}

	// ByID is a request about something with a number.
	ByID struct {
		ID int64 `path:"id" doc:"Its number."`
	}
)

// name is the name of something, in a path.
type name string

// Schema says what names are. The rule itself is that of [tidemark.CheckName] alone.
func (name) Schema(huma.Registry) *huma.Schema {
	least, most := 1, tidemark.MaxName
	return &huma.Schema{Type: huma.TypeString, MinLength: &least, MaxLength: &most}
}

// Resolve refuses what is no name.
func (n name) Resolve(huma.Context) []error {
	if err := tidemark.CheckName(string(n)); err != nil {
		return []error{err}
	}
	return nil
}

// What a request is answered with.
type (
	answer[T any] struct {
		Body T
	}

	made[T any] struct {
		Location string `header:"Location" doc:"The path of what was made."`
		Body     T
	}

	begun struct {
		Location string `header:"Location" doc:"The path of the job."`
		Body     tidemark.Job
	}

	paged[T any] struct {
		Link string `header:"Link" doc:"The path of the next part, as RFC 8288 has it; missing: this is the last."`
		Body tidemark.Page[T]
	}
)

// with makes o read a request of type I and answer it by fn.
func with[I, O any](o operation, fn func(context.Context, *control.Control, *I) (*O, error)) operation {
	return by(o, func(s *server, ctx context.Context, in *I) (*O, error) { return fn(ctx, s.c, in) })
}

// by is with for what the server does itself.
func by[I, O any](o operation, fn func(*server, context.Context, *I) (*O, error)) operation {
	o.input = reflect.TypeFor[I]()
	o.register = func(s *server, h huma.Operation) {
		huma.Register(s.api, h, func(ctx context.Context, in *I) (*O, error) {
			done, err := s.allow(ctx, o, in)
			defer func() { done() }()
			var out *O
			if err == nil {
				out, err = fn(s, control.WithNeeds(ctx, callerOf(ctx).needs), in)
			}
			if err != nil {
				callerOf(ctx).failure = err
				return nil, s.problem(err)
			}
			return out, nil
		})
	}
	return o
}

// get makes o answer with what fn returns.
func get[I, T any](o operation, fn func(context.Context, *control.Control, *I) (T, error)) operation {
	o.status = http.StatusOK
	return with(o, func(ctx context.Context, c *control.Control, in *I) (*answer[T], error) {
		v, err := fn(ctx, c, in)
		return &answer[T]{Body: v}, err
	})
}

// do makes o answer that fn has done it.
func do[I any](o operation, fn func(context.Context, *control.Control, *I) error) operation {
	o.status = http.StatusNoContent
	return with(o, func(ctx context.Context, c *control.Control, in *I) (*struct{}, error) {
		return nil, fn(ctx, c, in)
	})
}

// create makes o answer with what fn has made, and at which path it is.
func create[I, T any](o operation, at func(*I, T) string, fn func(context.Context, *control.Control, *I) (T, error)) operation {
	return createBy(o, at, func(s *server, ctx context.Context, in *I) (T, error) { return fn(ctx, s.c, in) })
}

// createBy is create for what the server makes itself.
func createBy[I, T any](o operation, at func(*I, T) string, fn func(*server, context.Context, *I) (T, error)) operation {
	o.status, o.once = http.StatusCreated, true
	return by(o, func(s *server, ctx context.Context, in *I) (*made[T], error) {
		v, err := fn(s, ctx, in)
		if err != nil {
			return nil, err
		}
		return &made[T]{Location: at(in, v), Body: v}, nil
	})
}

// begin makes o answer with the job that fn has begun, whose result is a T.
func begin[T, I any](o operation, fn func(context.Context, *control.Control, *I) (tidemark.Job, error)) operation {
	o.status, o.once, o.queues, o.result = http.StatusAccepted, o.method == http.MethodPost, true, reflect.TypeFor[T]()
	return with(o, func(ctx context.Context, c *control.Control, in *I) (*begun, error) {
		j, err := fn(ctx, c, in)
		if err != nil {
			return nil, err
		}
		return &begun{Location: jobPath(j.ID), Body: j}, nil
	})
}

// sending says that events of some names have a T as data.
func sending[T any](events ...string) map[string]reflect.Type {
	m := map[string]reflect.Type{}
	for _, e := range events {
		m[e] = reflect.TypeFor[T]()
	}
	return m
}

// raw makes o answer by fn alone, which is not shown to the framework, with a media type.
func raw(o operation, media string, fn func(s *server, w http.ResponseWriter, r *http.Request)) operation {
	o.status, o.apart = http.StatusOK, true
	o.register = func(s *server, h huma.Operation) {
		h.Responses["200"] = &huma.Response{Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{media: {Schema: &huma.Schema{}}}}
		s.api.OpenAPI().AddOperation(&h)
		s.handle(&h, func(w http.ResponseWriter, r *http.Request) {
			if _, err := s.allow(r.Context(), o, nil); err != nil {
				s.fail(w, err)
				return
			}
			fn(s, w, r)
		})
	}
	return o
}

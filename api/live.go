package api

import (
	"context"
	"net/http"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// liveTable is what is done with LiveClones. They are made, and removed, as clones are.
func liveTable() []operation {
	return []operation{
		list(operation{id: "list-liveclones", method: http.MethodGet, path: "/v1/liveclones", tag: "LiveClones", summary: "Clones that are prepared for others",
			description: "By name, with what of them is published.", errors: wrong, rule: may(access.CloneView, access.KindClone)},
			func(l tidemark.LiveClone) string { return l.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.LiveClone, error) {
				all, err := c.LiveClones(ctx)
				if err != nil {
					return nil, err
				}
				return all, liveWithoutWay(ctx, c, all)
			}),
		get(operation{id: "get-liveclone", method: http.MethodGet, path: "/v1/liveclones/{name}", tag: "LiveClones", summary: "One LiveClone",
			description: "With how it is prepared, and what of it is published.", errors: missing, rule: may(access.CloneView, access.KindClone, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.LiveClone, error) {
				l, err := c.LiveClone(ctx, string(in.Name))
				if err != nil {
					return l, err
				}
				one := []tidemark.LiveClone{l}
				err = liveWithoutWay(ctx, c, one)
				return one[0], err
			}),
		begin[tidemark.Prepared](operation{id: "prepare-liveclone", method: http.MethodPost, path: "/v1/liveclones/{name}/preparations", tag: "LiveClones", summary: "Prepare a LiveClone, and bookmark the result",
			description: "It is refreshed, if that is asked for, its steps are run, and what they have left of what they masked is taken off a PostgreSQL. If that fails, or is cut, it is what it was before.",
			errors:      refused, rule: may(access.CloneRefresh, access.KindClone, "path.name").ofSource(access.ApplicationClone, "body.refresh", "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.PrepareSpec]) (_ tidemark.Job, err error) {
				spec := tidemark.PrepareSpec{}
				if in.Body != nil {
					spec = *in.Body
				}
				if spec.Name, err = sameName(in.Name, spec.Name); err != nil {
					return tidemark.Job{}, err
				}
				return c.Prepare(ctx, spec)
			}),
		begin[tidemark.Published](operation{id: "publish-point", method: http.MethodPost, path: "/v1/liveclones/{name}/publications", tag: "LiveClones", summary: "Check a point for residue, and publish it if there is none",
			description: "All that a clone of the point could read is searched for the sensitive values. If one is found the job fails, and its result says where. Only a point that a preparation ended in can be published. What is published is kept.",
			errors:      refused, rule: may(access.ApplicationPublish, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.PublishSpec]) (_ tidemark.Job, err error) {
				spec := tidemark.PublishSpec{}
				if in.Body != nil {
					spec = *in.Body
				}
				if spec.Name, err = sameName(in.Name, spec.Name); err != nil {
					return tidemark.Job{}, err
				}
				return c.Publish(ctx, spec)
			}),
		do(operation{id: "unpublish-point", method: http.MethodDelete, path: "/v1/liveclones/{name}/publications", tag: "LiveClones", summary: "End that a point may be cloned by others",
			description: "Clones of it stay.", errors: refused, rule: may(access.ApplicationPublish, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByName
				Bookmark string `query:"bookmark" required:"true" doc:"The point."`
			}) error {
				return c.Unpublish(ctx, string(in.Name), in.Bookmark)
			}),
	}
}

// liveWithoutWay is withoutWay for LiveClones.
func liveWithoutWay(ctx context.Context, c *control.Control, list []tidemark.LiveClone) error {
	for i := range list {
		one := []tidemark.Clone{list[i].Clone}
		if err := withoutWay(ctx, c, one); err != nil {
			return err
		}
		list[i].Clone = one[0]
	}
	return nil
}

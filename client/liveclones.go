package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"tidemark"
)

// LiveClones lists clones that are prepared for others, by name.
func (c *Client) LiveClones(ctx context.Context) iter.Seq2[tidemark.LiveClone, error] {
	return list[tidemark.LiveClone](ctx, c, "/v1/liveclones", nil)
}

// LiveClone describes one of them.
func (c *Client) LiveClone(ctx context.Context, name string) (tidemark.LiveClone, error) {
	return get[tidemark.LiveClone](ctx, c, path("/v1/liveclones/%s", name))
}

// Prepare prepares a LiveClone, and bookmarks the result. The result is a [tidemark.Prepared].
func (c *Client) Prepare(ctx context.Context, spec tidemark.PrepareSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/liveclones/%s/preparations", spec.Name), spec)
}

// Publish checks a point of a LiveClone for residue, and publishes it if there is none. The result is a [tidemark.Published].
func (c *Client) Publish(ctx context.Context, spec tidemark.PublishSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/liveclones/%s/publications", spec.Name), spec)
}

// Unpublish ends that a point of a LiveClone may be cloned by others.
func (c *Client) Unpublish(ctx context.Context, name, bookmark string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/liveclones/%s/publications", name)+"?"+url.Values{"bookmark": {bookmark}}.Encode(), nil, nil)
}

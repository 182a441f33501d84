package control

import (
	"path/filepath"
	"testing"

	"tidemark"
)

// A bookmark whose name means another point is refused by whatever could make one: nobody could say that it is meant.
func TestBookmarksThatReadAsPoints(t *testing.T) {
	c, _, _ := liveVolume(t)
	ctx, image := t.Context(), filepath.Join(filepath.Dir(c.o.Dir), "image")
	for _, name := range []string{"latest", "2026-01-01"} {
		for what, ask := range map[string]func() error{
			"bookmark": func() error {
				_, err := c.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: name})
				return err
			},
			"group bookmark": func() error {
				_, err := c.BookmarkGroup(ctx, tidemark.BookmarkSpec{Application: "g", Name: name})
				return err
			},
			"capture": func() error {
				_, err := c.Capture(ctx, tidemark.CaptureSpec{Application: "absent", Bookmark: name})
				return err
			},
			"import": func() error {
				_, err := c.ImportVolume(ctx, tidemark.ImportSpec{Name: "v", Path: image, Bookmark: name})
				return err
			},
			"prepare": func() error {
				_, err := c.Prepare(ctx, tidemark.PrepareSpec{Name: "absent", Bookmark: name})
				return err
			},
			"workflow": func() error {
				_, err := c.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: "kind: Workflow\nname: w\nsteps:\n  - bookmark: {app: v, name: " + name + "}\n"})
				return err
			},
		} {
			if err := ask(); tidemark.KindOf(err) != tidemark.Invalid {
				t.Errorf("%s as %s: %v", what, name, err)
			}
		}
	}
	for _, name := range []string{"v", "absent"} {
		if a, err := c.app(name); err != nil || a.t.HasBookmark("latest") || a.t.HasBookmark("2026-01-01") {
			t.Errorf("%s has such a bookmark: %v", name, err)
		}
	}
}

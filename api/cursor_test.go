package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tidemark"
)

// TestParts follows a list part by part while entries come and go: what is there from beginning to end is given once.
func TestParts(t *testing.T) {
	x := newRig(t)
	for i := range 7 {
		x.volume(fmt.Sprintf("v%d", i))
	}
	var got []string
	next := "/v1/volumes?limit=2"
	for n := 0; next != ""; n++ {
		resp, text := x.ask("GET", next, "")
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		p := decode[tidemark.Page[tidemark.VolumeInfo]](t, text)
		if len(p.Items) > 2 {
			t.Errorf("a part has %d entries", len(p.Items))
		}
		for _, v := range p.Items {
			got = append(got, v.Name)
		}
		link := resp.Header.Get("Link")
		if (link == "") != (p.Next == "") || link != "" && !strings.Contains(link, p.Next) {
			t.Errorf("the link is %q, and next is %q", link, p.Next)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
		if n == 0 { // behind us, before us, and the one that the cursor is of
			x.volume("a")
			x.volume("v2b")
			if err := x.RemoveVolume(context.Background(), "v1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := []string{"v0", "v1", "v2", "v2b", "v3", "v4", "v5", "v6"}; !slices.Equal(got, want) {
		t.Errorf("%v, and not %v", got, want)
	}
	for _, v := range got {
		if v != "v1" {
			if _, err := x.Volume(context.Background(), v); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestPartsOfPoints does it with points, jobs and events, which are found by numbers.
func TestPartsOfPoints(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	x.volume("v")
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("p%02d", i)
		want = append(want, name)
		if _, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for next := "/v1/applications/v/points?limit=4"; next != ""; {
		resp, text := x.ask("GET", next, "")
		for _, p := range decode[tidemark.Page[tidemark.RecoveryPoint]](t, text).Items {
			got = append(got, p.Bookmark)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, and not %v", got, want)
	}
	for range 5 {
		j, err := x.Reclaim(ctx)
		if err == nil {
			err = x.Wait(ctx, j.ID, nil, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var ids []int64
	for next := "/v1/jobs?limit=2&state=done"; next != ""; {
		resp, text := x.ask("GET", next, "")
		for _, j := range decode[tidemark.Page[tidemark.Job]](t, text).Items {
			ids = append(ids, j.ID)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if want := []int64{5, 4, 3, 2, 1}; !slices.Equal(ids, want) {
		t.Errorf("%v, and not %v", ids, want)
	}
	_, text := x.ask("GET", "/v1/jobs?limit=2", "")
	cursor := decode[tidemark.Page[tidemark.Job]](t, text).Next
	if resp, text := x.ask("GET", "/v1/events?cursor="+cursor, ""); resp.StatusCode != 400 {
		t.Errorf("the cursor of another list was taken: %s", text)
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("/v1/jobs", "12")
	f.Add("/v1/applications/v/points", "")
	f.Add("", "\n")
	f.Fuzz(func(t *testing.T, list, text string) {
		if key, err := decodeCursor(list, text); err == nil && text != "" && encodeCursor(list, key) != text {
			t.Errorf("%q of %q is read as %q, which is %q", text, list, key, encodeCursor(list, key))
		}
		if text == "" {
			return
		}
		key, err := decodeCursor(list, encodeCursor(list, text))
		if strings.Contains(text, "\x00") { // no entry has such a key
			if tidemark.KindOf(err) != tidemark.Invalid {
				t.Errorf("%q of %q is taken: %q, %v", text, list, key, err)
			}
		} else if err != nil || key != text {
			t.Errorf("%q of %q comes back as %q, %v", text, list, key, err)
		}
		if _, err := (Listing{Cursor: text}).number(list); err != nil && tidemark.KindOf(err) != tidemark.Invalid {
			t.Error(err)
		}
	})
}

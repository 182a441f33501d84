package api

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/client"
)

// TestFollowJob reads the stream of a job to its end.
func TestFollowJob(t *testing.T) {
	x := newRig(t)
	j, err := x.Reclaim(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	resp, text := x.ask("GET", fmt.Sprintf("/v1/jobs/%d/events", j.ID), "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %s", resp.Status, text)
	}
	last := regexp.MustCompile(`(?s)event: end\ndata: (\{[^\n]*\})\n\n$`).FindSubmatch(text)
	if last == nil {
		t.Fatalf("the stream has no end: %q", text)
	}
	if got := decode[tidemark.Job](t, last[1]); got.ID != j.ID || got.State != tidemark.JobDone {
		t.Errorf("%+v", got)
	}
	if resp, text := x.ask("GET", "/v1/jobs/999/events", ""); resp.StatusCode != 404 {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// TestFollowEvents reads events as they come, and from an event on.
func TestFollowEvents(t *testing.T) {
	x := newRig(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	file := t.TempDir() + "/disk"
	happen := func(name string) {
		t.Helper()
		j, err := x.Protect(ctx, tidemark.ProtectSpec{Name: name, Source: file})
		if _, err = client.Result[tidemark.Application](ctx, x.Client, j, err, nil); err == nil {
			t.Error("what is not there was protected")
		}
		x.volume(name)
		k, err := x.ChangeApplication(ctx, name, tidemark.ApplicationChange{})
		if _, err = client.Result[tidemark.Application](ctx, x.Client, k, err, nil); err != nil {
			t.Fatal(err)
		}
	}
	happen("before")
	old, err := client.Collect(x.Events(ctx))
	if err != nil || len(old) == 0 {
		t.Fatal(old, err)
	}
	got := make(chan tidemark.Event, 10)
	ready := make(chan struct{})
	go func() {
		defer close(got)
		close(ready)
		for e, err := range x.Follow(ctx, old[0].ID) {
			if err != nil {
				return
			}
			got <- e
		}
	}()
	<-ready
	happen("after")
	e := <-got
	if e.ID <= old[0].ID || e.Application != "after" {
		t.Errorf("%+v comes behind %+v", e, old[0])
	}
	for again, err := range x.Follow(ctx, old[0].ID) {
		if err != nil || again.ID != e.ID {
			t.Errorf("%+v, %v, and not %+v", again, err, e)
		}
		break
	}
	if resp, text := x.ask("GET", "/v1/events/stream", "", "Last-Event-ID", "yesterday"); resp.StatusCode != 400 {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// TestMetrics holds that what Prometheus is told is there, with units and bounded labels.
func TestMetrics(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	x.volume("v")
	if _, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "one"}); err != nil {
		t.Fatal(err)
	}
	j, err := x.Reclaim(ctx)
	if _, err := client.Result[tidemark.ReclaimResult](ctx, x.Client, j, err, nil); err != nil {
		t.Fatal(err)
	}
	x.ask("GET", "/v1/applications/nobody1", "")
	x.ask("GET", "/v1/applications/nobody2", "")
	text, err := x.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`tidemark_build_info{version="`, `tidemark_job_duration_seconds_count{kind="reclaim",state="done"} 1`, "tidemark_pool_physical_bytes ", "tidemark_pool_logical_bytes ",
		"tidemark_pool_healthy 1", "tidemark_journal_bytes ", "tidemark_k ", "tidemark_k_limit ", `tidemark_application_newest_point_timestamp_seconds{application="v"} `,
		"tidemark_mounts 0", "tidemark_exports 0", "tidemark_clones 0", `tidemark_http_requests_total{code="404",operation="get-application"} 2`,
		`tidemark_http_request_duration_seconds_count{operation="get-application"} 2`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("there is no %s", want)
		}
	}
	if strings.Contains(text, "nobody1") {
		t.Error("what somebody asked for is a label")
	}
	for _, line := range strings.Split(text, "\n") {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "# TYPE tidemark_"), " "); ok && strings.HasPrefix(line, "# TYPE tidemark_") && strings.Contains(line, " counter") && !strings.HasSuffix(name, "_total") {
			t.Errorf("the counter tidemark_%s is not called a total", name)
		}
	}
}

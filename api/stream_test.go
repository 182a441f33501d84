package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
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

// TestStreamEndsWithRights holds that who is shut out, or may not see the server any more, reads no event that comes then.
func TestStreamEndsWithRights(t *testing.T) {
	x := newRig(t)
	network := httptest.NewServer(outside(x))
	defer network.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for user, shut := range shutOut(ctx, x) {
		secret := x.person(user, access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
		r, err := http.NewRequestWithContext(ctx, "GET", network.URL+"/v1/events/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %+v, %v", user, resp, err)
		}
		defer resp.Body.Close()
		x.event("before-" + user)
		body := bufio.NewReader(resp.Body)
		for line := ""; !strings.Contains(line, "before-"+user); {
			if line, err = body.ReadString('\n'); err != nil {
				t.Fatalf("%s reads no event: %v", user, err)
			}
		}
		if err := shut(user); err != nil {
			t.Fatal(err)
		}
		x.event("after-" + user)
		if rest, err := io.ReadAll(body); err != nil || strings.Contains(string(rest), "after-"+user) {
			t.Errorf("%s reads on: %q, %v", user, rest, err)
		}
	}
}

// TestQuietStreamEndsWithRights holds that a stream ends then, too, in which nothing is sent but that it lives.
func TestQuietStreamEndsWithRights(t *testing.T) {
	x := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	srv := newServer(x.c, slog.New(slog.DiscardHandler))
	later := catalog.NewJob{Kind: "reclaim", NotBefore: time.Now().Add(time.Hour), MaxAttempts: 1}
	j, err := x.c.Access().Enqueue(ctx, later, catalog.Limits{Host: 1, All: 1})
	if err != nil {
		t.Fatal(err)
	}
	for user, shut := range shutOut(ctx, x) {
		secret := x.person(user, access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
		ended := make(chan error, 3)
		quick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who, err := srv.identify(operation{}, r, false)
			if err != nil {
				ended <- err
				return
			}
			s := &stream{w: w, rc: http.NewResponseController(w), say: 10 * time.Millisecond}
			ctx := context.WithValue(r.Context(), callerKey{}, who)
			switch r.URL.Path {
			case "/job":
				ended <- s.job(ctx, x.c, j.Job)
			case "/changes":
				ended <- s.changes(ctx, x.c, &ofChanges{})
			default:
				ended <- s.events(ctx, x.c, 0)
			}
		}))
		defer quick.Close()
		for _, path := range []string{"/job", "/events", "/changes"} {
			r, err := http.NewRequestWithContext(ctx, "GET", quick.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+secret)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body := bufio.NewReader(resp.Body)
			for line := ""; line != ":\n"; {
				if line, err = body.ReadString('\n'); err != nil {
					t.Fatalf("%s of %s does not live: %v", path, user, err)
				}
			}
		}
		if err := shut(user); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := <-ended; tidemark.KindOf(err) != tidemark.Denied {
				t.Errorf("a stream of %s ended with %v", user, err)
			}
		}
	}
}

// shutOut are ways to shut a user out, by the names of users who are.
func shutOut(ctx context.Context, x *rig) map[string]func(user string) error {
	return map[string]func(string) error{
		"disabled": func(user string) error { return x.ChangeUser(ctx, user, tidemark.UserChange{Disabled: true}) },
		"revoked": func(user string) error {
			tokens, err := x.c.Access().Tokens(ctx, user, 0, 9)
			for _, k := range tokens {
				err = errors.Join(err, x.c.Access().RevokeToken(ctx, user, k.ID))
			}
			return err
		},
		"bereft": func(user string) error {
			_, grants, err := x.c.Access().Principal(ctx, user, access.ByToken)
			for _, g := range grants {
				err = errors.Join(err, x.c.Access().RemoveGrant(ctx, g.ID))
			}
			return err
		},
	}
}

// event has something happen to a volume of a name.
func (x *rig) event(name string) {
	x.t.Helper()
	x.volume(name)
	ctx := context.Background()
	j, err := x.ChangeApplication(ctx, name, tidemark.ApplicationChange{})
	if _, err = client.Result[tidemark.Application](ctx, x.Client, j, err, nil); err != nil {
		x.t.Fatal(err)
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

package control

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/catalog/catalogtest"
)

// away is a server whose catalog is behind a gate, with the volume v and its bookmark pub-1, and the same catalog past the gate.
func away(t *testing.T) (*Control, *catalogtest.Gate, *catalog.Catalog) {
	t.Helper()
	postgres := catalogtest.StartPostgres(t)
	g := catalogtest.NewGate(t, postgres)
	c, err := Open(t.Context(), Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20, Catalog: g.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Set(false, false)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: "pub-1"}); err != nil {
		t.Fatal(err)
	}
	past, err := catalog.Open(t.Context(), "postgres://postgres@/postgres?host="+postgres, c.identity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { past.Close() })
	return c, g, past
}

func lost(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the answer was not lost")
	}
}

// TestKeysAway ends requests with keys while the catalog is away. When it is back, each key has its answer or is free, and one that another has
// taken meanwhile is left alone.
func TestKeysAway(t *testing.T) {
	c, g, past := away(t)
	ctx := t.Context()
	keys := map[string]catalog.Key{}
	take := func(name string) {
		t.Helper()
		keys[name] = catalog.NewKey(name, "server")
		if known, err := c.TakeKey(ctx, keys[name], "print"); err != nil || known != nil {
			t.Fatal(known, err)
		}
	}
	for _, name := range []string{"answered", "released", "others", "others answered"} {
		take(name)
	}
	answer := catalog.Answer{Status: 201, Media: "application/json", Body: "{}"}

	done := g.LoseAnswer("INSERT INTO answers", true)
	unheard := catalog.NewKey("unheard", "server")
	if _, err := c.TakeKey(ctx, unheard, "print"); err == nil {
		t.Fatal("the catalog is not away")
	}
	lost(t, done)
	if known, err := past.TakeKey(ctx, catalog.NewKey("unheard", "test"), "print"); err != nil || known == nil {
		t.Fatalf("this tests nothing: %v, %v", known, err)
	}
	c.Answered(ctx, keys["answered"], answer)
	c.ReleaseKey(ctx, keys["released"])
	for _, name := range []string{"others", "others answered"} {
		if err := past.ReleaseKey(ctx, keys[name]); err != nil { // as if it were forgotten
			t.Fatal(err)
		}
		if known, err := past.TakeKey(ctx, catalog.NewKey(name, "other"), "other print"); err != nil || known != nil {
			t.Fatal(known, err)
		}
	}
	c.ReleaseKey(ctx, keys["others"])
	c.Answered(ctx, keys["others answered"], answer)
	if known, err := past.TakeKey(ctx, catalog.NewKey("released", "test"), "print"); err != nil || known == nil {
		t.Fatalf("this tests nothing: %v, %v", known, err)
	}
	g.Set(false, false)

	holds(t, "the answer is there", func() bool {
		known, err := past.TakeKey(ctx, catalog.NewKey("answered", "test"), "print")
		return err == nil && known != nil && known.Answer != nil && *known.Answer == answer
	})
	for _, name := range []string{"released", "unheard"} {
		holds(t, name+" is free", func() bool {
			known, err := past.TakeKey(ctx, catalog.NewKey(name, "test"), "print")
			return err == nil && known == nil
		})
	}
	holds(t, "nothing is left to be told", func() bool {
		c.lateKeys.mu.Lock()
		defer c.lateKeys.mu.Unlock()
		return len(c.lateKeys.ends) == 0 && c.lateKeys.bytes == 0
	})
	for _, name := range []string{"others", "others answered"} {
		if known, err := past.TakeKey(ctx, catalog.NewKey(name, "test"), "print"); err != nil || known == nil || known.Fingerprint != "other print" || known.Answer != nil {
			t.Errorf("%s: %+v, %v", name, known, err)
		}
	}
}

// What is kept of ends that the catalog cannot be told is bounded.
func TestLateKeysAreBounded(t *testing.T) {
	c := &Control{log: slog.New(slog.DiscardHandler)}
	c.jobs.init()
	c.jobs.cancel(errStopping) // nothing is told
	big := catalog.Answer{Status: 201, Body: strings.Repeat("x", 1<<20)}
	for range 40 {
		c.endLater(keyEnd{key: catalog.NewKey("k", "server"), answer: &big}, catalog.ErrAway)
	}
	if l := &c.lateKeys; len(l.ends) < 10 || len(l.ends) > 16 || l.bytes > maxLateKeys {
		t.Errorf("%d ends of %d bytes", len(l.ends), l.bytes)
	}
	c.jobs.wg.Wait()
}

// runTo runs w, and reports how it ended, whatever happens to the catalog.
func runTo(t *testing.T, c *Control) tidemark.Job {
	t.Helper()
	j, err := c.Run(t.Context(), "w", tidemark.RunSpec{})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// overPast waits for a job to end, by the catalog past the gate.
func overPast(t *testing.T, past *catalog.Catalog, id int64) (j *catalog.Job) {
	t.Helper()
	holds(t, "the job ends", func() bool {
		var err error
		j, err = past.Job(t.Context(), id)
		return err == nil && j.State != tidemark.JobQueued && j.State != tidemark.JobRunning
	})
	return j
}

// TestPartUnanswered: the COMMIT of a part of a run is not answered, and the catalog is away for a while. The run goes on with that part.
func TestPartUnanswered(t *testing.T) {
	c, g, past := away(t)
	for i, stay := range []bool{false, true} {
		name := []string{"k", "l"}[i]
		applied(t, c, "", "  - clone: {source: v@pub-1, name: "+name+"}\n")
		done := g.LoseCommit(`"name":"`+name+`"`, stay)
		run := runTo(t, c)
		lost(t, done)
		if stay {
			time.Sleep(3 * time.Second)
			g.Set(false, false)
		}
		if j := overPast(t, past, run.ID); j.State != tidemark.JobDone {
			t.Errorf("stay %v: the run is %s: %v", stay, j.State, j.Error)
		}
		parts, err := past.PartsOf(t.Context(), run.ID)
		if err != nil || len(parts) != 1 {
			t.Fatalf("%v, %v", parts, err)
		}
		for _, id := range parts {
			if j := overPast(t, past, id); j.State != tidemark.JobDone || j.Attempt != 1 {
				t.Errorf("stay %v: the part is %s, begun %d times: %v", stay, j.State, j.Attempt, j.Error)
			}
		}
	}
}

// TestPartOutlivesStep: the time of a step is over while it is not known whether its job was recorded. It was, and does not run for nobody.
func TestPartOutlivesStep(t *testing.T) {
	c, g, past := away(t)
	// Its job cannot begin, for another one of its application runs.
	if _, err := past.Enqueue(t.Context(), catalog.NewJob{Kind: "capture", Application: "k", Now: true}, c.limits()); err != nil {
		t.Fatal(err)
	}
	applied(t, c, "", "  - clone: {source: v@pub-1, name: k}\n    timeout: 5s\n")
	done := g.LoseCommit(`"name":"k"`, true)
	run := runTo(t, c)
	lost(t, done)
	time.Sleep(6 * time.Second)
	g.Set(false, false)
	if j := overPast(t, past, run.ID); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "took longer") {
		t.Errorf("the run is %s: %v", j.State, j.Error)
	}
	parts, err := past.PartsOf(t.Context(), run.ID)
	if err != nil || len(parts) != 1 {
		t.Fatalf("this tests nothing: %v, %v", parts, err)
	}
	for _, id := range parts {
		if j, err := past.Job(context.Background(), id); err != nil || j.State != tidemark.JobCancelled {
			t.Errorf("the run has ended, and its part is %+v, %v", j, err)
		}
	}
}

package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/access"
	"tidemark/catalog/catalogtest"
	"tidemark/internal/vfs"
)

// request is what a request with a number put into the audit: n records.
func request(i, n int) (list []*access.AuditRecord) {
	at := time.Now()
	for k := range n {
		r := record(i)
		r.Time, r.Object = at, fmt.Sprintf("app%d-%d", i, k)
		list = append(list, r)
	}
	return list
}

// asked are the requests of an audit, oldest first, each as often as it has records.
func asked(t *testing.T, c *Catalog) (list []string) {
	t.Helper()
	ctx := context.Background()
	must(c.VerifyAudit(ctx, nil))(t)
	for _, r := range must(c.Audit(ctx, AuditQuery{Limit: 100_000}))(t) {
		list = append([]string{r.Request}, list...)
	}
	return list
}

func must3(t *testing.T, kept bool, err error) {
	t.Helper()
	if !kept || err != nil {
		t.Fatalf("kept %v: %v", kept, err)
	}
}

// spool: what waits is appended in order, with its time, and once, also if it had been appended before.
func spool(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	mem := vfs.NewMem()
	s := must(OpenSpool(mem, "waiting"))(t)
	if n := must(s.Drain(ctx, c))(t); n != 0 {
		t.Fatalf("%d at first", n)
	}
	first := request(0, 2)
	ok(t, c.AppendAudit(ctx, first...)) // and nobody was told
	var want []string
	var last time.Time
	for i := range 251 {
		list := first
		if i > 0 {
			list = request(i, 1+i%3)
		}
		if i == 250 { // what somebody sends must not keep it from being recorded
			list[0].Detail, list[0].Object = strings.Repeat("<ä>", 5000), "a\x00b\xff"
		}
		kept, err := s.Keep(list...)
		must3(t, kept, err)
		for range list {
			want = append(want, fmt.Sprint("r", i))
		}
		last = list[0].Time
	}
	again := must(OpenSpool(mem, "waiting"))(t)
	for _, x := range []*Spool{s, again} { // the second as after a crash before the file was gone
		if n := must(x.Drain(ctx, c))(t); n != len(want) {
			t.Errorf("%d of %d", n, len(want))
		}
		if got := asked(t, c); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	if n, lost := s.Waiting(); n != 0 || lost != 0 {
		t.Errorf("%d wait, %d are lost", n, lost)
	}
	if text, err := vfs.ReadFile(mem, "waiting"); err == nil {
		t.Errorf("the file is there still: %d bytes", len(text))
	}
	newest := must(c.Audit(ctx, AuditQuery{Limit: 1}))(t)[0]
	if !newest.Time.Equal(last) {
		t.Errorf("it happened at %v, and not at %v", last, newest.Time)
	}
}

// spoolTogether: many keep while one drains; nothing is lost or there twice.
func spoolTogether(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	s := must(OpenSpool(vfs.NewMem(), "waiting"))(t)
	var wg, drainer sync.WaitGroup
	stop := make(chan struct{})
	drainer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.Drain(ctx, c); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				if kept, err := s.Keep(request(1000*w+i, 1)...); !kept || err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	drainer.Wait()
	must(s.Drain(ctx, c))(t)
	last, seen := map[int]int{}, map[string]bool{}
	for _, r := range asked(t, c) {
		var n int
		fmt.Sscanf(r, "r%d", &n)
		if seen[r] || n%1000 < last[n/1000] {
			t.Fatalf("%s is there twice, or out of order", r)
		}
		seen[r], last[n/1000] = true, n%1000
	}
	if len(seen) != 200 {
		t.Errorf("%d of 200", len(seen))
	}
}

// TestSpoolCrash cuts the power after each step: what was kept is there, in order, and nothing that was not.
func TestSpoolCrash(t *testing.T) {
	ctx := context.Background()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"))
		mem := vfs.NewMem()
		s := must(OpenSpool(mem, "waiting"))(t)
		var want []string
		for i := range 30 {
			switch rng.IntN(4) {
			case 0:
				must(s.Drain(ctx, c))(t)
			case 1:
				mem = vfs.Crash(mem, rng.IntN(101), rng)
				s = must(OpenSpool(mem, "waiting"))(t)
			default:
				kept, err := s.Keep(request(i, 1)...)
				must3(t, kept, err)
				want = append(want, fmt.Sprint("r", i))
			}
		}
		must(s.Drain(ctx, c))(t)
		if got := asked(t, c); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("%q, want %q", got, want)
		}
		c.Close()
	}
}

// TestSpoolDamage cuts the file at every byte, and changes every byte.
func TestSpoolDamage(t *testing.T) {
	mem := vfs.NewMem()
	s := must(OpenSpool(mem, "waiting"))(t)
	for i := range 4 {
		kept, err := s.Keep(request(i, 1)...)
		must3(t, kept, err)
	}
	whole := must(vfs.ReadFile(mem, "waiting"))(t)
	open := func(text []byte) (list []string, n int) {
		t.Helper()
		mem := vfs.NewMem()
		ok(t, vfs.WriteFile(mem, "waiting", text))
		s := must(OpenSpool(mem, "waiting"))(t)
		s = must(OpenSpool(mem, "waiting"))(t) // what was found is what is there
		for _, e := range s.waiting {
			list = append(list, e.Records[0].Request)
		}
		n, _ = s.Waiting()
		return list, n
	}
	for n := range whole {
		lines := bytes.Count(whole[:n], []byte("\n"))
		if list, waiting := open(whole[:n]); len(list) != lines || waiting != lines {
			t.Fatalf("cut at %d: %q, %d", n, list, waiting)
		}
	}
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 1 << (i % 7)
		if i == bytes.LastIndexByte(whole[:len(whole)-1], '\n') {
			continue // it looks as if the last line had been cut
		}
		list, waiting := open(bad)
		last := i > bytes.LastIndexByte(whole[:len(whole)-1], '\n')
		switch {
		case last && waiting != 3: // it was cut
			t.Fatalf("byte %d of the last line changed: %q, %d", i, list, waiting)
		case !last && (waiting < 3 || waiting > 4 || list[len(list)-1] != "r3"): // one or two lines are one record of a loss
			t.Fatalf("byte %d changed: %q, %d", i, list, waiting)
		}
	}
}

// TestSpoolFull: what is refused crowds out nothing that was done, and what is lost is counted, also behind a crash.
func TestSpoolFull(t *testing.T) {
	ctx, c := context.Background(), openAt(t, filepath.Join(t.TempDir(), "catalog.db"))
	mem := vfs.NewMem()
	s := must(OpenSpool(mem, "waiting"))(t)
	batch := func(i int, outcome access.Outcome) []*access.AuditRecord {
		list := request(i, 100)
		for _, r := range list {
			r.Outcome = outcome
		}
		return list
	}
	lost := 0
	for i := range MaxSpooled/200 + 3 {
		if kept, err := s.Keep(batch(i, access.Refused)...); !kept {
			lost++
			if !errors.Is(err, errSpoolFull) {
				t.Fatal(err)
			}
		}
	}
	if lost != 4 { // one more than there were too many, for the record of the loss needs room
		t.Fatalf("%d were lost", lost)
	}
	kept, err := s.Keep(batch(1000, access.Done)...)
	must3(t, kept, err)
	for i := range MaxSpooled / 100 {
		kept, _ = s.Keep(batch(2000+i, access.Done)...)
	}
	if n, lost := s.Waiting(); kept || n > MaxSpooled+1 || lost < 400 {
		t.Fatalf("kept %v, %d wait, %d lost", kept, n, lost)
	}
	_, all := s.Waiting()
	s = must(OpenSpool(vfs.Crash(mem, 0, rand.New(rand.NewPCG(1, 2))), "waiting"))(t)
	n := must(s.Drain(ctx, c))(t)
	list := must(c.Audit(ctx, AuditQuery{Limit: 100_000}))(t)
	must(c.VerifyAudit(ctx, nil))(t)
	var told []access.AuditRecord
	for _, r := range list {
		if r.Action == AuditLost {
			told = append(told, r)
		}
	}
	if len(told) != 2 || len(list) != n || n > MaxSpooled+1 {
		t.Fatalf("%d records of %d, %d of losses, and %d are lost: %+v", len(list), n, len(told), all, told)
	}
	if d := told[1].Detail; !strings.HasPrefix(d, "400 records of what was asked for from ") || told[1].Seq != int64(MaxSpooled/2-100+1) {
		t.Errorf("%d: %s", told[1].Seq, d)
	}
	if d := told[0].Detail; !strings.Contains(d, " or more records") || told[0].Outcome != access.Failed || told[0].Seq != int64(n) {
		t.Errorf("%d: %s", told[0].Seq, d)
	}
}

// TestSpoolDiskFull: while the file cannot be written records are kept in memory, and are in the file when it can again.
func TestSpoolDiskFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	s := must(OpenSpool(vfs.OS, filepath.Join(dir, "waiting")))(t)
	for i := range 3 {
		if kept, err := s.Keep(request(i, 1)...); !kept || err == nil {
			t.Fatalf("kept %v: %v", kept, err)
		}
	}
	ok(t, vfs.MkdirAll(vfs.OS, dir))
	s.retry = time.Time{}
	kept, err := s.Keep(request(3, 1)...)
	must3(t, kept, err)
	ok(t, s.Close())
	if n, _ := must(OpenSpool(vfs.OS, filepath.Join(dir, "waiting")))(t).Waiting(); n != 4 {
		t.Errorf("%d of 4", n)
	}
	if kept, err := s.Keep(request(4, 1)...); kept || !errors.Is(err, errSpoolClosed) {
		t.Errorf("kept %v after the end: %v", kept, err)
	}
}

// TestSpoolAway: while the database is away records wait, and come when it is back.
func TestSpoolAway(t *testing.T) {
	ctx := context.Background()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	c := openFor(t, g.URL(), "us")
	s := must(OpenSpool(vfs.NewMem(), "waiting"))(t)
	_, _, key := keys(t)
	mem := vfs.NewMem()
	for i, mute := range []bool{false, true} {
		ok(t, c.AppendAudit(ctx, request(3*i, 1)...))
		g.Set(!mute, mute)
		list := request(3*i+1, 1)
		if err := c.AppendAudit(ctx, list...); !errors.Is(err, ErrAway) {
			t.Fatalf("mute %v: %v", mute, err)
		}
		kept, err := s.Keep(list...)
		must3(t, kept, err)
		if _, err := s.Drain(ctx, c); !errors.Is(err, ErrAway) {
			t.Fatalf("mute %v: %v", mute, err)
		}
		if _, err := c.CheckpointAudit(ctx, mem, "witness", key); !errors.Is(err, ErrAway) {
			t.Fatalf("mute %v: %v", mute, err)
		}
		kept, err = s.Keep(request(3*i+2, 1)...)
		must3(t, kept, err)
		g.Set(false, false)
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if _, err := s.Drain(ctx, c); err == nil {
				break
			} else if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	if got := strings.Join(asked(t, c), " "); got != "r0 r1 r2 r3 r4 r5" {
		t.Error(got)
	}
	ok(t, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
}

func FuzzSpool(f *testing.F) {
	mem := vfs.NewMem()
	s, err := OpenSpool(mem, "waiting")
	if err != nil {
		f.Fatal(err)
	}
	for i := range 2 {
		if _, err := s.Keep(request(i, 2)...); err != nil {
			f.Fatal(err)
		}
	}
	text, err := vfs.ReadFile(mem, "waiting")
	if err != nil {
		f.Fatal(err)
	}
	line := spooled{Lost: &loss{Records: 3, First: time.Unix(1, 2).UTC(), Last: time.Unix(3, 4).UTC(), Request: "x"}}.line()
	f.Add(append(bytes.Clone(text), line...), false)
	f.Add(append(bytes.Clone(line), text...), true)
	f.Add([]byte("00000000 {}\n"), true)
	f.Fuzz(func(t *testing.T, text []byte, right bool) {
		if right { // what a line says is tried, and not only its checksum
			var all []byte
			for line := range bytes.Lines(text) {
				_, body, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
				all = fmt.Appendf(all, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
			}
			text = all
		}
		mem := vfs.NewMem()
		ok(t, vfs.WriteFile(mem, "waiting", text))
		first := must(OpenSpool(mem, "waiting"))(t)
		again := must(OpenSpool(mem, "waiting"))(t)
		a, _ := first.Waiting()
		b, _ := again.Waiting()
		if a != b || a > bytes.Count(text, []byte("\n"))+bytes.Count(text, []byte("{")) {
			t.Fatalf("%d, and then %d", a, b)
		}
	})
}

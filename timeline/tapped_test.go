package timeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/internal/vfs"
	"tidemark/wire"
)

// server has one timeline and takes changes for it from a socket. It can be stopped, and lose power.
type server struct {
	t    *testing.T
	fs   *vfs.MemFS
	path string // of the socket
	w    *world
	line *Timeline
	stop func()
}

func (s *server) start(id string) {
	s.t.Helper()
	s.w = open(s.t, s.fs, "/d")
	if id == "" {
		var err error
		if s.line, err = s.w.set.Create(s.t.Context(), "tapped", []DiskSpec{{Name: "disk", Size: diskSize, Chunk: testChunk}}, nil); err != nil {
			s.t.Fatal(err)
		}
		if err := s.line.SetWindow(Window{For: time.Hour}); err != nil {
			s.t.Fatal(err)
		}
	} else {
		s.line = s.w.set.Get(id)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	line := s.line
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				wire.Serve(ctx, conn, func(_ context.Context, name, id string, before capture.Sent) (wire.Feed, bool, error) {
					if name != line.ID() {
						return nil, false, errors.New("no such timeline")
					}
					f, known, err := line.Feed(id, before)
					return marking{f}, known, err
				})
			})
		}
	})
	s.stop = func() {
		cancel()
		l.Close()
		all.Wait()
	}
}

// restart stops the server and starts it again, in between without power.
func (s *server) restart(cut bool, rng *rand.Rand) {
	s.t.Helper()
	id := s.line.ID()
	s.stop()
	after := s.fs
	if cut {
		after = vfs.Crash(s.fs, 50, rng)
	}
	s.w.close(s.t)
	s.fs = after
	s.start(id)
}

// tap taps a primary for the server.
func (s *server) tap(dir string, primary tap.Primary) *tap.Tap {
	s.t.Helper()
	tp, err := tap.Open(tap.Options{Dir: filepath.Join(dir, "tap"), Primaries: []tap.Primary{primary}, Logger: quiet, Sink: &wire.Client{
		Timeline: s.line.ID(), Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", s.path) },
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	return tp
}

// TestServerPutBackBetweenTaps (J1) puts the server's files back to what they were some writes ago, with the same stream, while
// no tap runs. The next tap is told at once that something is gone, before any sample, and sends everything.
func TestServerPutBackBetweenTaps(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "primary")
	now := bytes.Repeat([]byte("0123456789abcdef"), diskSize/16)
	if err := os.WriteFile(file, now, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, fs: vfs.NewMem(), path: filepath.Join(dir, "s")}
	s.start("")
	var snapshot *vfs.MemFS
	for run := range 2 {
		primary, err := tap.OpenPrimary(file)
		if err != nil {
			t.Fatal(err)
		}
		tp := s.tap(dir, primary)
		catchesUp(t, s, now)
		if run == 0 {
			snapshot = vfs.Crash(s.fs, 100, rand.New(rand.NewPCG(1, 1)))
			copy(now[8192:], bytes.Repeat([]byte("gone"), 1024))
			if _, err := tp.Disks()[0].WriteAt(now[8192:12288], 8192); err != nil {
				t.Fatal(err)
			}
			catchesUp(t, s, now)
		}
		if err := tp.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if run == 0 {
			id := s.line.ID()
			s.stop()
			s.w.close(t)
			s.fs = snapshot
			s.start(id)
		}
	}
	gaps := s.line.Gaps()
	if last := gaps[len(gaps)-1]; !strings.Contains(last.Why, "lost a part") {
		t.Errorf("the gaps are %+v", gaps)
	}
	s.stop()
	s.w.close(t)
}

// seen is what a disk held at a time, between two writes.
type seen struct {
	when time.Time
	data []byte
}

// TestTappedDiskAtAnyTime (J3, J7) writes to a tapped file while the server of its timeline is stopped and
// loses power. Then, at any time that is not in a gap, the timeline shows what the disk held: every write
// answered before, and none that was begun later.
func TestTappedDiskAtAnyTime(t *testing.T) {
	rounds := 6
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 300
	}
	for n := range rounds {
		seed := uint64(time.Now().UnixNano()) + uint64(n)
		tappedRound(t, seed)
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
}

func tappedRound(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	dir := t.TempDir()
	file := filepath.Join(dir, "primary")
	now := make([]byte, diskSize)
	for i := range now {
		now[i] = byte(rng.Uint32())
	}
	if err := os.WriteFile(file, now, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, fs: vfs.NewMem(), path: filepath.Join(dir, "s")}
	s.start("")
	primary, err := tap.OpenPrimary(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tap.OpenPrimary(file); !errors.Is(err, tap.ErrBusy) {
		t.Errorf("tapped a second time: %v", err)
	}
	tp := s.tap(dir, primary)
	past := tapWrites(t, rng, s, tp, now)
	catchesUp(t, s, past[len(past)-1].data)
	if err := tp.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if onDisk, err := os.ReadFile(file); err != nil || !bytes.Equal(onDisk, past[len(past)-1].data) {
		t.Errorf("the primary is not what was written to it: %v", err)
	}
	shown := 0
	for _, p := range past {
		shown += showsPast(t, s.line, p)
	}
	if shown == 0 {
		t.Error("not one time could be shown")
	}
	s.stop()
	s.w.close(t)
}

// tapWrites writes at random, and returns what the disk held at times in between.
func tapWrites(t *testing.T, rng *rand.Rand, s *server, tp *tap.Tap, now []byte) (past []seen) {
	d := tp.Disks()[0]
	catchesUp(t, s, now)
	for n := range 150 {
		off := rng.Int64N(diskSize/512) * 512
		size := min(512*(1+rng.Int64N(200)), diskSize-off)
		if n%5 > 0 {
			off &^= 4095
			size = min(4096, diskSize-off)
		}
		p := now[off : off+size]
		var err error
		if rng.IntN(8) == 0 {
			clear(p)
			err = d.Discard(off, size)
		} else {
			copy(p, fmt.Sprintf("write %d", n))
			_, err = d.WriteAt(p, off)
		}
		if err != nil {
			t.Fatal(err)
		}
		past = append(past, seen{time.Now(), bytes.Clone(now)})
		time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		switch rng.IntN(40) {
		case 0:
			s.restart(false, rng)
		case 1:
			s.restart(true, rng)
		case 2:
			if err := s.line.Fold(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 3:
			catchesUp(t, s, now)
		case 4, 5: // a look at the present is a record of the server's own, ahead of changes that are on their way
			if head, _ := s.line.Head(); true {
				if snap, err := s.line.At("disk", head); err == nil {
					snap.Close()
				}
			}
		case 6, 7:
			showsSoon(t, s, tp, past[len(past)-1])
		}
	}
	return past
}

// showsSoon compares a time just past with what is shown for it as soon as the tap says that it can be.
func showsSoon(t *testing.T, s *server, tp *tap.Tap, p seen) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); tp.Status().Reached.Before(p.when); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the timeline is not said to have reached %v: %+v", p.when, tp.Status())
		}
	}
	showsPast(t, s.line, p)
}

// catchesUp waits until the timeline holds what the disk does, outside of any gap.
func catchesUp(t *testing.T, s *server, want []byte) {
	t.Helper()
	got := make([]byte, diskSize)
	for range 2000 {
		if s.line.openGapOf() == nil {
			if _, err := s.line.Disks()[0].ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(got, want) {
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the timeline does not come to what the disk holds")
}

// showsPast compares a time of the past with what the timeline shows for it, and returns 1 if it shows one.
func showsPast(t *testing.T, line *Timeline, p seen) int {
	t.Helper()
	pos, err := line.Resolve(tidemark.Point{Time: p.when})
	if tidemark.KindOf(err) == tidemark.Unavailable {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	snap, err := line.At("disk", pos)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	got := make([]byte, diskSize)
	if _, err := snap.ReadAt(got, 0); err != nil || !bytes.Equal(got, p.data) {
		t.Errorf("at %v, position %v, the disk is shown otherwise than it was: %v", p.when, pos, err)
	}
	return 1
}

// marking is a feed as the wire wants it.
type marking struct{ *Feed }

func (m marking) Bookmark(mark capture.Mark) error {
	_, err := m.Feed.Bookmark(mark)
	return err
}

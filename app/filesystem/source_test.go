package filesystem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/app/delta"
)

// cutAfter is a connection that breaks when so many bytes were read from it.
type cutAfter struct {
	net.Conn
	left atomic.Int64
}

func (c *cutAfter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// ship sends a tree over a connection of this host's network, which breaks when cut bytes have come; 0: it does not.
func ship(t testing.TB, src, staging string, opts delta.Options, cut int64) (delta.Stats, error) {
	t.Helper()
	return shipAs(t, src, staging, opts, cut, func(s *Source) delta.Source { return s })
}

func shipAs(t testing.TB, src, staging string, opts delta.Options, cut int64, as func(*Source) delta.Source) (delta.Stats, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		s, err := OpenSource(src)
		if err != nil {
			sent <- err
			l.Close()
			return
		}
		defer s.Close()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			err = delta.Send(context.Background(), conn, as(s))
		}
		sent <- err
	}()
	conn, err := l.Accept()
	if err != nil {
		return delta.Stats{}, <-sent
	}
	if cut > 0 {
		c := &cutAfter{Conn: conn}
		c.left.Store(cut)
		conn = c
	}
	opts.Tops = []string{DataDir}
	st, err := delta.Receive(context.Background(), conn, staging, opts, nil)
	if serr := <-sent; err == nil && serr != nil {
		t.Fatalf("staged, and the sender says %v", serr)
	}
	return st, err
}

func mustShip(t testing.TB, src, staging string, opts delta.Options) delta.Stats {
	t.Helper()
	st, err := ship(t, src, staging, opts, 0)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// A tree that changes at random is sent again and again, with cuts in between, and each copy is the tree.
func TestShipModel(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	src, staging := t.TempDir(), t.TempDir()
	for i := range 4 {
		if err := os.Mkdir(fmt.Sprintf("%s/d%d", src, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	skipped, cut := 0, 0
	var found int64
	index := t.TempDir() + "/cache/index"
	for range 80 {
		for range rng.IntN(12) {
			mutate(t, rng, src)
		}
		time.Sleep(12 * time.Millisecond)
		opts := delta.Options{Margin: 5 * time.Millisecond, Index: index}
		if rng.IntN(3) == 0 {
			if _, err := ship(t, src, staging, opts, 1+rng.Int64N(30_000)); err != nil {
				if !errors.Is(err, delta.ErrLost) {
					t.Fatalf("seed %d: cut: %v", seed, err)
				}
				cut++
			}
		}
		st, err := ship(t, src, staging, opts, 0)
		if err != nil || len(st.Inconsistent) > 0 || st.Rescan != "" {
			t.Fatalf("seed %d: %+v, %v", seed, st, err)
		}
		skipped += st.Skipped
		found += st.FoundBytes
		equal(t, seed, src, filepath.Join(staging, DataDir))
	}
	if skipped == 0 || cut == 0 || found == 0 {
		t.Errorf("seed %d: %d were proven unchanged, %d were cut, %d bytes were found elsewhere", seed, skipped, cut, found)
	}
}

// noise is bytes that cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	r.Read(b)
	return b
}

// Only blocks that differ travel, and what has come before a cut does not come again.
func TestShipsWhatDiffers(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	data := noise(40 << 20)
	write(t, src+"/big", data)
	for i := range 200 {
		write(t, fmt.Sprintf("%s/small/%d", src, i), data[i*5000:(i+1)*5000])
	}
	st, err := ship(t, src, staging, delta.Options{}, 30<<20)
	if !errors.Is(err, delta.ErrLost) {
		t.Fatalf("%+v %v", st, err)
	}
	st = mustShip(t, src, staging, delta.Options{})
	if st.Shipped < 8<<20 || st.Shipped > 16<<20 {
		t.Errorf("30 of 41 MiB had come, and then %d bytes came", st.Shipped)
	}
	equal(t, 0, src, staging+"/data")
	copy(data[20<<20:], "changed")
	write(t, src+"/big", data)
	st = mustShip(t, src, staging, delta.Options{Samples: -1})
	if st.ChangedBytes != 4096 || st.Shipped > 12<<10 || st.Asked > 300<<10 {
		t.Errorf("one block changed: %+v", st)
	}
	equal(t, 0, src, staging+"/data")
	f, err := os.OpenFile(src+"/sparse", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<40), f.Close()); err != nil {
		t.Fatal(err)
	}
	f, _ = os.OpenFile(src+"/big", os.O_RDWR, 0)
	if _, err := f.WriteAt(make([]byte, 1<<20), 1<<20); err != nil || f.Truncate(30<<20) != nil || f.Close() != nil {
		t.Fatal(err)
	}
	st = mustShip(t, src, staging, delta.Options{Samples: -1})
	if st.Shipped > 64<<10 || st.ChangedBytes != 1<<20 {
		t.Errorf("zeros: %+v", st)
	}
	big, err := os.ReadFile(staging + "/data/big")
	want := append(append(append([]byte{}, data[:1<<20]...), make([]byte, 1<<20)...), data[2<<20:30<<20]...)
	if err != nil || !bytes.Equal(big, want) {
		t.Error("the copy is another one")
	}
	fi, err := os.Stat(staging + "/data/sparse")
	if err != nil || fi.Size() != 1<<40 || statOf(fi).Blocks > 0 {
		t.Errorf("%+v %v", fi, err)
	}
}

func TestShipSampleFindsLyingDates(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/a", bytes.Repeat([]byte("x"), 100_000))
	time.Sleep(30 * time.Millisecond)
	opts := delta.Options{Margin: 10 * time.Millisecond}
	mustShip(t, src, staging, opts)
	if st := mustShip(t, src, staging, opts); st.Skipped != 1 || st.Sampled == 0 {
		t.Errorf("nothing changed: %+v", st)
	}
	copied := staging + "/data/a"
	fi, err := os.Stat(copied)
	if err != nil {
		t.Fatal(err)
	}
	write(t, copied, bytes.Repeat([]byte("y"), 100_000))
	if err := os.Chtimes(copied, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if st := mustShip(t, src, staging, opts); st.Rescan == "" {
		t.Errorf("not noticed: %+v", st)
	}
	equal(t, 0, src, staging+"/data")
}

// restless is a tree of which one file is written whenever somebody looks at it.
type restless struct {
	*Source
	path  string
	wrote int64
}

func (r *restless) Attr(f *os.File) (delta.Attr, error) {
	if filepath.Base(f.Name()) == filepath.Base(r.path) {
		r.wrote++
		when := time.Unix(r.wrote, 0)
		if err := os.Chtimes(r.path, when, when); err != nil {
			return delta.Attr{}, err
		}
	}
	return r.Source.Attr(f)
}

// A file that changes each time it is read is named, and the rest is there.
func TestShipNamesWhatNeverRests(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/log", noise(8<<20))
	write(t, src+"/calm", []byte("calm"))
	st, err := shipAs(t, src, staging, delta.Options{}, 0, func(s *Source) delta.Source { return &restless{s, src + "/log", 0} })
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Inconsistent) != 1 || st.Inconsistent[0] != "data/log" {
		t.Errorf("%+v", st)
	}
	mustShip(t, src, staging, delta.Options{})
	equal(t, 0, src, staging+"/data")
}

// growing is a tree in which a file becomes longer, by zeros, between being told and being sent.
type growing struct {
	*Source
	path string
}

func (g growing) Open(path string) (*os.File, error) {
	if err := os.Truncate(g.path, 40_000); err != nil {
		return nil, err
	}
	return g.Source.Open(path)
}

// What was staged behind the end that a file had does not come back when it grows.
func TestShipOfWhatGrows(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/a", noise(50_000))
	mustShip(t, src, staging, delta.Options{})
	if err := os.Truncate(src+"/a", 20_001); err != nil {
		t.Fatal(err)
	}
	if _, err := shipAs(t, src, staging, delta.Options{}, 0, func(s *Source) delta.Source { return growing{s, src + "/a"} }); err != nil {
		t.Fatal(err)
	}
	equal(t, 0, src, staging+"/data")
}

func TestShipRefuses(t *testing.T) {
	if _, err := OpenSource(t.TempDir() + "/absent"); err == nil {
		t.Error("a directory that is not there")
	}
}

// Package objecttest checks that a bucket keeps the promises of package object.
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// Run checks the bucket that open makes, an empty one at every call.
func Run(t *testing.T, open func(t *testing.T) object.Bucket) {
	for name, fn := range map[string]func(*testing.T, object.Bucket){
		"PutReadStat": putReadStat, "Exists": exists, "WrongLength": wrongLength, "BadKeys": badKeys,
		"List": list, "Delete": remove, "Race": race, "Cancelled": cancelled, "ReadNow": readNow,
	} {
		t.Run(name, func(t *testing.T) { fn(t, open(t)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func putReadStat(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	data := bytes.Repeat([]byte("tidemark"), 300_000)
	must(t, object.PutBytes(ctx, b, "a/b/c.1", data))
	must(t, object.PutBytes(ctx, b, "empty", nil))
	st, err := b.Stat(ctx, "a/b/c.1")
	must(t, err)
	if st.Key != "a/b/c.1" || st.Size != int64(len(data)) {
		t.Fatalf("stat: %+v", st)
	}
	p := make([]byte, 1000)
	must(t, b.ReadAt(ctx, "a/b/c.1", p, 12345))
	if !bytes.Equal(p, data[12345:13345]) {
		t.Fatal("wrong bytes")
	}
	wantIs(t, b.ReadAt(ctx, "a/b/c.1", p, int64(len(data))-999), io.ErrUnexpectedEOF)
	wantIs(t, b.ReadAt(ctx, "a/b/c.1", p, int64(len(data))+9), io.ErrUnexpectedEOF)
	must(t, b.ReadAt(ctx, "empty", nil, 0))
	wantIs(t, b.ReadAt(ctx, "absent", p, 0), object.ErrNotFound)
	_, err = b.Stat(ctx, "absent")
	wantIs(t, err, object.ErrNotFound)
	_, err = b.Stat(ctx, "a/b")
	wantIs(t, err, object.ErrNotFound)
}

func exists(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	must(t, object.PutBytes(ctx, b, "k", []byte("one")))
	wantIs(t, object.PutBytes(ctx, b, "k", []byte("two")), object.ErrExists)
	p := make([]byte, 3)
	must(t, b.ReadAt(ctx, "k", p, 0))
	if string(p) != "one" {
		t.Fatalf("overwritten: %q", p)
	}
}

func wrongLength(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	for _, size := range []int64{0, 2, 4, 1 << 30} {
		if err := b.Put(ctx, "k", strings.NewReader("abc"), size); err == nil {
			t.Fatalf("3 bytes announced as %d were taken", size)
		}
		_, err := b.Stat(ctx, "k")
		wantIs(t, err, object.ErrNotFound)
	}
}

// readNow: what a bucket has at hand is what ReadAt returns; it need not have anything.
func readNow(t *testing.T, b object.Bucket) {
	n, ok := b.(object.NowReader)
	if !ok {
		return
	}
	data := bytes.Repeat([]byte("tidemark"), 30_000)
	must(t, object.PutBytes(t.Context(), b, "a/b", data))
	p, q := make([]byte, 1000), make([]byte, 1000)
	for _, off := range []int64{0, 4097, int64(len(data)) - 1000} {
		must(t, b.ReadAt(t.Context(), "a/b", p, off))
		if n.ReadAtNow("a/b", q, off) && !bytes.Equal(p, q) {
			t.Fatalf("other bytes at %d", off)
		}
	}
	if n.ReadAtNow("a/b", p, int64(len(data))-999) || n.ReadAtNow("a/b", p, int64(len(data))+9) || n.ReadAtNow("a/b", p, -1) {
		t.Fatal("read past an end")
	}
	must(t, b.Delete(t.Context(), "a/b"))
	if n.ReadAtNow("a/b", p, 0) || n.ReadAtNow("../x", p, 0) {
		t.Fatal("read of what is not there")
	}
}

func badKeys(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	for _, key := range []string{"", "/", "a/", "/a", "a//b", "..", "a/../b", ".", "a/.b", "A", "a b", "a\x00", "ä", "a\\b", strings.Repeat("a/", 300) + "a"} {
		wantIs(t, object.PutBytes(ctx, b, key, nil), object.ErrBadKey)
		wantIs(t, b.ReadAt(ctx, key, nil, 0), object.ErrBadKey)
		_, err := b.Stat(ctx, key)
		wantIs(t, err, object.ErrBadKey)
		wantIs(t, b.Delete(ctx, key), object.ErrBadKey)
	}
}

func list(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	for _, key := range []string{"p/b", "p/a0", "p/a/x", "p/a-b", "q", "pp"} {
		must(t, object.PutBytes(ctx, b, key, []byte(key)))
	}
	for prefix, want := range map[string]string{
		"": "p/a-b p/a/x p/a0 p/b pp q ", "p/": "p/a-b p/a/x p/a0 p/b ", "p/a": "p/a-b p/a/x p/a0 ", "p": "p/a-b p/a/x p/a0 p/b pp ", "z": "", "p/a/": "p/a/x ",
	} {
		var got string
		must(t, b.List(ctx, prefix, func(o object.Info) error {
			if o.Size != int64(len(o.Key)) {
				t.Errorf("%s: size %d", o.Key, o.Size)
			}
			got += o.Key + " "
			return nil
		}))
		if got != want {
			t.Errorf("list %q: got %q, want %q", prefix, got, want)
		}
	}
	stop := errors.New("stop")
	wantIs(t, b.List(ctx, "", func(object.Info) error { return stop }), stop)
}

func remove(t *testing.T, b object.Bucket) {
	ctx := t.Context()
	must(t, b.Delete(ctx, "k"))
	must(t, object.PutBytes(ctx, b, "k", []byte("abc")))
	must(t, b.ReadAt(ctx, "k", make([]byte, 1), 0))
	must(t, b.Delete(ctx, "k"))
	wantIs(t, b.ReadAt(ctx, "k", make([]byte, 1), 0), object.ErrNotFound)
	must(t, object.PutBytes(ctx, b, "k", []byte("xyz")))
	p := make([]byte, 3)
	must(t, b.ReadAt(ctx, "k", p, 0))
	if string(p) != "xyz" {
		t.Fatalf("old bytes: %q", p)
	}
}

func race(t *testing.T, b object.Bucket) {
	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := object.PutBytes(t.Context(), b, "k", []byte{byte(i)})
			if err == nil {
				wins.Add(1)
			} else if !errors.Is(err, object.ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d of 8 won", wins.Load())
	}
}

func cancelled(t *testing.T, b object.Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantIs(t, object.PutBytes(ctx, b, "k", []byte("abc")), context.Canceled)
	_, err := b.Stat(t.Context(), "k")
	wantIs(t, err, object.ErrNotFound)
}

// Crash checks, over rounds power cuts, that a bucket on a file system keeps
// each object whole or absent, and those whose Put returned whole.
func Crash(t *testing.T, rounds int, open func(vfs.FS) (object.Bucket, error)) {
	seed := rand.Uint64()
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		if err := crashOnce(t.Context(), rng, open); err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
	}
}

func crashOnce(ctx context.Context, rng *rand.Rand, open func(vfs.FS) (object.Bucket, error)) error {
	fs := vfs.NewMem()
	b, err := open(fs)
	if err != nil {
		return err
	}
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, 5000*i+7) }
	acked, during := rng.IntN(5), rng.IntN(2)
	for i := range acked {
		if err := object.PutBytes(ctx, b, fmt.Sprintf("d%d/k%d", i%2, i), content(i)); err != nil {
			return err
		}
	}
	crashed := fs
	if during == 1 { // the power fails while the last one is being read from its source
		r := &tripwire{r: bytes.NewReader(content(acked)), at: rng.IntN(5000 * (acked + 1))}
		r.fn = func() { crashed = vfs.Crash(fs, rng.IntN(101), rng) }
		if err := b.Put(ctx, fmt.Sprintf("d%d/k%d", acked%2, acked), r, int64(len(content(acked)))); err != nil {
			return err
		}
	}
	if crashed == fs {
		crashed = vfs.Crash(fs, rng.IntN(101), rng)
		acked += during
	}
	if b, err = open(crashed); err != nil {
		return err
	}
	for i := range acked {
		p := make([]byte, len(content(i)))
		if err := b.ReadAt(ctx, fmt.Sprintf("d%d/k%d", i%2, i), p, 0); err != nil || !bytes.Equal(p, content(i)) {
			return fmt.Errorf("object %d after the crash: %v", i, err)
		}
	}
	n := 0
	if err := b.List(ctx, "", func(object.Info) error { n++; return nil }); err != nil || n != acked {
		return fmt.Errorf("%d objects after the crash, want %d: %v", n, acked, err)
	}
	return nil
}

// tripwire calls fn once, when byte number at has been read.
type tripwire struct {
	r  io.Reader
	at int
	fn func()
}

func (w *tripwire) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.at -= n; w.at < 0 && w.fn != nil {
		w.fn()
		w.fn = nil
	}
	return n, err
}

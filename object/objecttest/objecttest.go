// Package objecttest checks that a bucket keeps the promises of [object.Bucket].
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"tidemark/object"
)

// Run checks the buckets that open returns, each time an empty one.
func Run(t *testing.T, open func(t *testing.T) object.Bucket) {
	t.Run("PutGet", func(t *testing.T) { putGet(t, open(t)) })
	t.Run("OneWinner", func(t *testing.T) { oneWinner(t, open(t)) })
	t.Run("List", func(t *testing.T) { list(t, open(t)) })
	t.Run("BadKeys", func(t *testing.T) { badKeys(t, open(t)) })
	t.Run("FailedPutLeavesNothing", func(t *testing.T) { failedPut(t, open(t)) })
}

func put(b object.Bucket, key, data string) error {
	return b.Put(context.Background(), key, bytes.NewReader([]byte(data)), int64(len(data)))
}

func putGet(t *testing.T, b object.Bucket) {
	ctx := context.Background()
	if err := put(b, "packs/a-1", "0123456789"); err != nil {
		t.Fatal(err)
	}
	if i, err := b.Stat(ctx, "packs/a-1"); err != nil || i.Size != 10 {
		t.Fatalf("stat: %+v, %v", i, err)
	}
	p := make([]byte, 4)
	if err := b.ReadAt(ctx, "packs/a-1", p, 3); err != nil || string(p) != "3456" {
		t.Fatalf("read: %q, %v", p, err)
	}
	if err := b.ReadAt(ctx, "packs/a-1", p, 8); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("read past the end: %v", err)
	}
	if err := b.ReadAt(ctx, "packs/b", p, 0); !errors.Is(err, object.ErrNotFound) {
		t.Fatalf("read of nothing: %v", err)
	}
	if err := put(b, "packs/a-1", "other"); !errors.Is(err, object.ErrExists) {
		t.Fatalf("second put: %v", err)
	}
	for range 2 {
		if err := b.Delete(ctx, "packs/a-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Stat(ctx, "packs/a-1"); !errors.Is(err, object.ErrNotFound) {
		t.Fatalf("stat after delete: %v", err)
	}
	if err := put(b, "packs/a-1", ""); err != nil {
		t.Fatalf("put after delete: %v", err)
	}
}

func oneWinner(t *testing.T, b object.Bucket) {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = put(b, "k", fmt.Sprint(i)) })
	}
	wg.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, object.ErrExists):
			t.Errorf("racer %d: %v (winner %d)", i, err, won)
		}
	}
	p := make([]byte, 1)
	if err := b.ReadAt(context.Background(), "k", p, 0); err != nil || string(p) != fmt.Sprint(won) {
		t.Errorf("the object is %q of winner %d: %v", p, won, err)
	}
}

func list(t *testing.T, b object.Bucket) {
	for _, k := range []string{"b/2", "a/1", "b/1", "b10", "c/x/y"} {
		if err := put(b, k, k); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string]string{"": "[a/1 b/1 b/2 b10 c/x/y]", "b": "[b/1 b/2 b10]", "b/": "[b/1 b/2]", "x": "[]"} {
		got := []string{}
		if err := b.List(context.Background(), prefix, func(i object.Info) error { got = append(got, i.Key); return nil }); err != nil || fmt.Sprint(got) != want {
			t.Errorf("list %q: %v, %v", prefix, got, err)
		}
	}
	stop := errors.New("stop")
	if err := b.List(context.Background(), "", func(object.Info) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a failing callback: %v", err)
	}
}

func badKeys(t *testing.T, b object.Bucket) {
	for _, k := range []string{"", "/a", "a/", "a//b", "../x", "a/../b", ".hidden", "A", "a b", "a\x00", "a\n", string(make([]byte, 600))} {
		if err := put(b, k, "x"); !errors.Is(err, object.ErrBadKey) {
			t.Errorf("put %q: %v", k, err)
		}
		if err := b.Delete(context.Background(), k); !errors.Is(err, object.ErrBadKey) {
			t.Errorf("delete %q: %v", k, err)
		}
	}
}

func failedPut(t *testing.T, b object.Bucket) {
	broken := io.MultiReader(bytes.NewReader(make([]byte, 100)), errReader{})
	if err := b.Put(context.Background(), "k", broken, 200); !errors.Is(err, errBroken) {
		t.Fatalf("put of a broken reader: %v", err)
	}
	if err := b.Put(context.Background(), "k", bytes.NewReader(nil), 200); err == nil {
		t.Fatal("put of fewer bytes than announced")
	}
	if _, err := b.Stat(context.Background(), "k"); !errors.Is(err, object.ErrNotFound) {
		t.Fatalf("something was left: %v", err)
	}
	if err := put(b, "k", "x"); err != nil {
		t.Fatal(err)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

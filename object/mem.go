package object

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Mem is a [Bucket] in memory, for tests and for trying things out: it is as
// durable as the process.
type Mem struct {
	mu      sync.RWMutex
	objects map[string][]byte // guarded by mu
}

// NewMem returns an empty bucket in memory.
func NewMem() *Mem { return &Mem{objects: map[string][]byte{}} }

// Put implements [Bucket].
func (m *Mem) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if int64(len(data)) != size {
		return fmt.Errorf("put %s: %w: got %d of %d bytes", key, io.ErrUnexpectedEOF, len(data), size)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok {
		return fmt.Errorf("put %s: %w", key, ErrExists)
	}
	m.objects[key] = data
	return nil
}

// ReadAt implements [Bucket].
func (m *Mem) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	m.mu.RLock()
	data, ok := m.objects[key]
	m.mu.RUnlock()
	switch {
	case CheckKey(key) != nil:
		return CheckKey(key)
	case !ok:
		return fmt.Errorf("read %s: %w", key, ErrNotFound)
	case off < 0 || off > int64(len(data)) || copy(p, data[off:]) < len(p):
		return fmt.Errorf("read %s at %d: %w", key, off, io.ErrUnexpectedEOF)
	}
	return ctx.Err()
}

// Stat implements [Bucket].
func (m *Mem) Stat(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	data, ok := m.objects[key]
	if !ok {
		return Info{}, fmt.Errorf("stat %s: %w", key, ErrNotFound)
	}
	return Info{Key: key, Size: int64(len(data))}, ctx.Err()
}

// List implements [Bucket].
func (m *Mem) List(ctx context.Context, prefix string, fn func(Info) error) error {
	m.mu.RLock()
	objects := maps.Clone(m.objects)
	m.mu.RUnlock()
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(Info{Key: key, Size: int64(len(objects[key]))}); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements [Bucket].
func (m *Mem) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return ctx.Err()
}

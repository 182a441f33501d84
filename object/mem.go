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

// Mem is a bucket in memory. The zero value is empty and ready.
type Mem struct {
	mu      sync.RWMutex
	objects map[string][]byte
}

// Put implements [Bucket].
func (m *Mem) Put(_ context.Context, key string, r io.Reader, size int64) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if int64(len(data)) != size {
		return fmt.Errorf("put %s: %d bytes were announced, and others came", key, size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok {
		return fmt.Errorf("%w: %s", ErrExists, key)
	}
	if m.objects == nil {
		m.objects = map[string][]byte{}
	}
	m.objects[key] = data
	return nil
}

func (m *Mem) get(key string) ([]byte, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	data, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return data, nil
}

// ReadAt implements [Bucket].
func (m *Mem) ReadAt(_ context.Context, key string, p []byte, off int64) error {
	data, err := m.get(key)
	if err != nil {
		return err
	}
	if off < 0 || off > int64(len(data)) || copy(p, data[off:]) < len(p) {
		return fmt.Errorf("read %s: %w", key, io.ErrUnexpectedEOF)
	}
	return nil
}

// Stat implements [Bucket].
func (m *Mem) Stat(_ context.Context, key string) (Info, error) {
	data, err := m.get(key)
	return Info{Key: key, Size: int64(len(data))}, err
}

// List implements [Bucket].
func (m *Mem) List(_ context.Context, prefix string, fn func(Info) error) error {
	m.mu.RLock()
	objects := maps.Clone(m.objects)
	m.mu.RUnlock()
	for _, k := range slices.Sorted(maps.Keys(objects)) {
		if strings.HasPrefix(k, prefix) {
			if err := fn(Info{Key: k, Size: int64(len(objects[k]))}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete implements [Bucket].
func (m *Mem) Delete(_ context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// Package object is where sealed bytes rest: a flat store of named, immutable
// objects, in a directory today and in a bucket of a cloud tomorrow.
//
// The promise every [Bucket] makes, and objecttest checks: once Put returned,
// the object is whole and durable; until then, and if the power fails, it is
// absent. There is no state in between, and an object never changes.
package object

import (
	"context"
	"errors"
	"io"
)

// Errors of a bucket; test with errors.Is.
var (
	// ErrNotFound: there is no object of that key.
	ErrNotFound = errors.New("object not found")
	// ErrExists: Put found an object of that key.
	ErrExists = errors.New("object exists")
	// ErrBadKey: the key is empty, too long, or has a part that is not [a-z0-9._-]+ or begins with a dot.
	ErrBadKey = errors.New("bad object key")
)

// Info describes an object: its key and its length in bytes.
type Info struct {
	Key  string
	Size int64
}

// Bucket holds objects. Keys are slash-separated lower-case words, at most 512
// bytes. All methods may be called concurrently, by many processes.
type Bucket interface {
	// Put stores size bytes of r under key. Three outcomes: nil, the object is
	// whole and durable; ErrExists, an object of that key was there and is
	// untouched; any other error, the object is absent (or, where the medium
	// lost its answer, whole).
	Put(ctx context.Context, key string, r io.Reader, size int64) error
	// ReadAt fills p from offset off of the object; short only with an error
	// (io.ErrUnexpectedEOF past the end, ErrNotFound).
	ReadAt(ctx context.Context, key string, p []byte, off int64) error
	// Stat describes an object.
	Stat(ctx context.Context, key string) (Info, error)
	// List calls fn for every object whose key starts with prefix, in order of
	// key, until fn or the medium fails. It never skips in silence.
	List(ctx context.Context, prefix string, fn func(Info) error) error
	// Delete removes an object; that it was absent is no error.
	Delete(ctx context.Context, key string) error
}

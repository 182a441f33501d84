package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
)

// Name is the SHA-256 of a chunk's bytes, or of a tree node's canonical form.
// The zero Name stands for zeros: a chunk, or a whole subtree, of them.
type Name [sha256.Size]byte

// String returns the name as 64 hexadecimal digits.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// short is enough of a name for a log line.
func (n Name) short() string { return hex.EncodeToString(n[:6]) }

// IsZero reports that the name stands for zeros.
func (n Name) IsZero() bool { return n == Name{} }

// ParseName is the inverse of [Name.String].
func ParseName(s string) (Name, error) {
	var n Name
	if len(s) != 2*len(n) {
		return Name{}, fmt.Errorf("chunk name of %d digits, want %d", len(s), 2*len(n))
	}
	if _, err := hex.Decode(n[:], []byte(s)); err != nil {
		return Name{}, fmt.Errorf("chunk name: %w", err)
	}
	return n, nil
}

// MarshalText implements [encoding.TextMarshaler], as [Name.String] does it.
func (n Name) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], as [ParseName] does it.
func (n *Name) UnmarshalText(text []byte) (err error) {
	*n, err = ParseName(string(text))
	return err
}

// Limits of an image. Chunks are powers of two within them; 16 KiB stores least
// of database pages while 4 KiB reads of it stay cheap.
const (
	MinChunk     = 4 << 10
	MaxChunk     = 1 << 20
	DefaultChunk = 16 << 10
	// MaxSize is the size of the largest disk in bytes: 1 EiB, well inside int64.
	MaxSize = 1 << 60
)

// ErrBadRoot: a root's size or chunk size is out of its limits, or two roots that
// must agree in chunk size do not.
var ErrBadRoot = errors.New("bad image root")

// Root is an image: the name of its tree, the disk's size and its chunk size,
// both in bytes. Roots are equal exactly when size, chunk size and content are.
type Root struct {
	Name  Name
	Size  int64
	Chunk int
}

// Empty is the image of a disk of zeros.
func Empty(size int64, chunk int) Root { return Root{Size: size, Chunk: chunk} }

// Check returns an error that wraps [ErrBadRoot] if r cannot be an image.
func (r Root) Check() error {
	if r.Chunk < MinChunk || r.Chunk > MaxChunk || bits.OnesCount(uint(r.Chunk)) != 1 {
		return fmt.Errorf("%w: chunk size %d is not a power of two from %d to %d", ErrBadRoot, r.Chunk, MinChunk, MaxChunk)
	}
	if r.Size < 0 || r.Size > MaxSize {
		return fmt.Errorf("%w: size %d is not from 0 to %d", ErrBadRoot, r.Size, int64(MaxSize))
	}
	return nil
}

// Chunks is the number of chunks of the disk; the last may reach past its end, in zeros.
func (r Root) Chunks() int64 { return (r.Size + int64(r.Chunk) - 1) / int64(r.Chunk) }

// height is the number of levels of nodes: 1 for up to 256 chunks.
func (r Root) height() int { return heightOf(r.Chunks()) }

func heightOf(chunks int64) int {
	h := 1
	for n := chunks; n > fanout; n = (n + fanout - 1) / fanout {
		h++
	}
	return h
}

// String is for logs: the short name and the size.
func (r Root) String() string { return fmt.Sprintf("%s/%d/%d", r.Name.short(), r.Size, r.Chunk) }

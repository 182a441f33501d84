package app

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"

	"tidemark/block"
	"tidemark/internal/vfs"
)

const (
	// PrintFrom is the size in bytes of a file from which on its prints are kept:
	// smaller ones are compared as quickly as they are looked up.
	PrintFrom = 256 << 10
	printSize = 16
	sealName  = "seal.json"
)

// Prints remembers what staged files hold, by a fingerprint of each 4 KiB block, so
// that a capture reads its source alone. The staged copy is read only where nothing is
// known of it.
//
// It is a cache. What it says is true of one state of the staging directory, which the
// caller names by a word of its own choice, the seal; for any other seal it is empty. The
// fingerprints are 127 bits of XXH3 with a seed that is drawn for each cache: two
// blocks have the same by an accident of 2^-127, and nobody who does not know the
// seed can prepare such a pair.
//
// Files are independent of each other: goroutines may copy different ones at once. A nil
// *Prints knows nothing and keeps nothing.
type Prints struct {
	dir  string
	seed uint64
}

type seal struct {
	Seal string `json:"seal"`
	Seed uint64 `json:"seed"`
}

// OpenPrints opens the cache in a directory that is its own, and breaks its seal. If that was
// another one, or is empty, everything in the cache is forgotten. An empty dir is no cache: nil.
func OpenPrints(dir, sealed string) (*Prints, error) {
	if dir == "" {
		return nil, nil
	}
	var s seal
	data, err := os.ReadFile(filepath.Join(dir, sealName))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil || sealed == "" || s.Seal != sealed {
		s = seal{Seed: rand.Uint64()}
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("forget fingerprints: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare fingerprints: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, sealName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("break the seal of fingerprints: %w", err)
	}
	return &Prints{dir: dir, seed: s.Seed}, nil
}

// Seal makes the cache durable, true of the state of staging that sealed names from now on.
// What belongs to files that are not in keep, which are paths as in Copy, is removed.
func (p *Prints) Seal(sealed string, keep []string) error {
	if p == nil {
		return nil
	}
	wanted := make(map[string]bool, len(keep))
	for _, rel := range keep {
		wanted[p.name(rel)] = true
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !wanted[e.Name()] {
			if err := os.Remove(filepath.Join(p.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// Before the seal: one that says more than is there would make a capture skip what changed.
	if err := SyncTree(p.dir); err != nil {
		return err
	}
	data, err := json.Marshal(seal{Seal: sealed, Seed: p.seed})
	if err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, filepath.Join(p.dir, sealName), data)
}

// name is a file's name in the cache: paths may be longer than names, and hostile.
func (p *Prints) name(rel string) string {
	h := xxh3.HashString128Seed(rel, p.seed).Bytes()
	return hex.EncodeToString(h[:])
}

// Copy makes dst equal to src like [Copier.Copy]. rel names the staged file, the same
// each time.
func (p *Prints) Copy(c *Copier, dst, src *os.File, rel string) (size int64, err error) {
	if p == nil {
		return c.Copy(dst, src)
	}
	path := filepath.Join(p.dir, p.name(rel))
	if st, err := src.Stat(); err != nil || st.Size() < PrintFrom {
		if err = os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		return c.Copy(dst, src)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open fingerprints: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return p.copy(c, dst, src, f)
}

func (p *Prints) copy(c *Copier, dst, src, prints *os.File) (int64, error) {
	c.alloc()
	st, err := dst.Stat()
	if err != nil {
		return 0, err
	}
	have := st.Size()
	var was, is [copyBuf / block.BlockSize * printSize]byte
	var off int64
	for {
		n, err := readFull(src, c.src, off)
		if err != nil {
			return off, fmt.Errorf("read %s: %w", src.Name(), err)
		}
		k := (n + block.BlockSize - 1) / block.BlockSize * printSize
		at := off / block.BlockSize * printSize
		clear(was[:k])
		if _, err := prints.ReadAt(was[:k], at); err != nil && !errors.Is(err, io.EOF) {
			return off, fmt.Errorf("read fingerprints: %w", err)
		}
		p.print(is[:k], c.src[:n])
		if err := c.mergeKnown(dst, c.src[:n], was[:k], is[:k], off, have); err != nil {
			return off, err
		}
		if string(was[:k]) != string(is[:k]) {
			if _, err := prints.WriteAt(is[:k], at); err != nil {
				return off, fmt.Errorf("write fingerprints: %w", err)
			}
		}
		off += int64(n)
		if n < len(c.src) {
			break
		}
	}
	if err := prints.Truncate((off + block.BlockSize - 1) / block.BlockSize * printSize); err != nil {
		return off, err
	}
	return off, c.setLength(dst, off, have)
}

// print writes the fingerprints of the blocks of b, none of which is zero.
func (p *Prints) print(to, b []byte) {
	for i := 0; i < len(b); i += block.BlockSize {
		h := xxh3.Hash128Seed(b[i:min(i+block.BlockSize, len(b))], p.seed)
		h.Lo |= 1 // zero stands for "not known"
		v := h.Bytes()
		copy(to[i/block.BlockSize*printSize:], v[:])
	}
}

// mergeKnown writes those blocks of b to dst that are not there already. A block whose fingerprint
// was known is not read to find that out.
func (c *Copier) mergeKnown(dst *os.File, b, was, is []byte, off, have int64) error {
	var unknown [printSize]byte
	read := c.ReadBytes
	kind := func(i int) (known, same bool) {
		k := i / block.BlockSize * printSize
		end := off + int64(min(i+block.BlockSize, len(b)))
		known = end <= have && string(was[k:k+printSize]) != string(unknown[:])
		return known, known && string(was[k:k+printSize]) == string(is[k:k+printSize])
	}
	for i := 0; i < len(b); {
		known, same := kind(i)
		end := i + block.BlockSize
		for end < len(b) {
			if k, s := kind(end); k != known || s != same {
				break
			}
			end += block.BlockSize
		}
		end = min(end, len(b))
		var err error
		switch {
		case !known:
			err = c.Merge(dst, b[i:end], off+int64(i), have)
		case !same:
			err = c.write(dst, b[i:end], off+int64(i))
		}
		if err != nil {
			return err
		}
		i = end
	}
	c.ReadBytes = read + int64(len(b))
	return nil
}

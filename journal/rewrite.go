package journal

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"

	"tidemark/internal/vfs"
)

// rewriteName is the file in which a segment is packed before it takes its place.
const rewriteName = "rewrite"

// probe is how many bytes of a segment are packed before it is known to be worth it:
// what stays longer than keepShare percent stays as it is.
const (
	probe     = 4 << 20
	keepShare = 90
)

// Rewritten says what a [Journal.Rewrite] did.
type Rewritten struct {
	Segments      int   // that were packed
	Before, After int64 // bytes that they took and take
}

// Rewrite packs the segments whose records are all at or before upTo: they are compressed, in place, and
// read as before, by those who hold them too. A last segment of more than a MiB is ended for it. It reads
// and writes each segment once in its life, 64 KiB at a time; segments that do not get
// smaller stay as they are. It may run beside everything else, and be cut at any time. Between these pieces it calls rest, if
// that is not nil.
func (j *Journal) Rewrite(ctx context.Context, upTo uint64, rest func()) (done Rewritten, err error) {
	j.rewriting.Lock()
	defer j.rewriting.Unlock()
	if err := j.endEarly(upTo); err != nil {
		return done, err
	}
	if rest == nil {
		rest = func() {}
	}
	for ctx.Err() == nil {
		s := j.nextRaw(upTo)
		if s == nil {
			return done, nil
		}
		err := j.rewrite(ctx, s, false, rest, &done)
		s.Release()
		if err != nil {
			return done, fmt.Errorf("pack journal segment %s: %w", s.path, noSpace(err))
		}
	}
	return done, ctx.Err()
}

// Raw reports whether Rewrite has something to do.
func (j *Journal) Raw(upTo uint64) bool {
	if s := j.nextRaw(upTo); s != nil {
		s.Release()
		return true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.endsEarly(upTo)
}

// nextRaw returns the oldest segment to pack, acquired, or nil.
func (j *Journal) nextRaw(upTo uint64) *Segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil
	}
	for _, s := range j.segments[:len(j.segments)-1] {
		if s.packed == 0 && !s.dense && !s.away && s.lastPos <= upTo && s.lastPos >= s.head.firstPos {
			s.Acquire()
			return s
		}
	}
	return nil
}

// rewrite packs one segment into a file of its own and lets that take its place; with dense, also if it does not get smaller.
func (j *Journal) rewrite(ctx context.Context, s *Segment, dense bool, rest func(), done *Rewritten) (err error) {
	tmp := j.fs.PathJoin(j.dir, rewriteName)
	size, err := j.pack(ctx, s, tmp, dense, rest)
	if err == nil && size > 0 {
		var taken bool
		if taken, err = j.replace(s, tmp, size); taken {
			done.Segments++
			done.Before += s.end
			done.After += size
			return err
		}
	}
	if e := j.fs.Remove(tmp); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// pack writes a packed copy of s to path, durably, reads it back, and returns its
// length: 0 if it is not worth having, unless dense ones are wanted, too.
func (j *Journal) pack(ctx context.Context, s *Segment, path string, dense bool, rest func()) (size int64, err error) {
	entries, err := s.index()
	if err != nil {
		return 0, err
	}
	f, err := vfs.Create(j.fs, path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head := s.head
	head.packed = true
	if _, err := f.WriteAt(head.encode(), 0); err != nil {
		return 0, err
	}
	var table []byte
	var sum uint32
	plain, buf := make([]byte, packedBlock), make([]byte, 0, packedBlock+1024)
	at := int64(segmentHeaderSize)
	for off := int64(segmentHeaderSize); off < s.end; off += packedBlock {
		rest()
		b := plain[:min(packedBlock, s.end-off)]
		if err := errors.Join(ctx.Err(), s.stretch(b, off)); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, b)
		stored, raw := packBlock(b, buf)
		if _, err := f.WriteAt(stored, at); err != nil {
			return 0, err
		}
		table = tableEntry(table, stored, raw)
		at += int64(len(stored))
		if read := off + int64(len(b)) - segmentHeaderSize; !dense && (read >= probe || off+packedBlock >= s.end) && at*100 > read*keepShare {
			j.mu.Lock()
			s.dense = true
			j.mu.Unlock()
			return 0, nil
		}
	}
	end := packedEnd(table, at, entries, s.head.after, s.end)
	if _, err := f.WriteAt(end, at); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return at + int64(len(end)), j.readBack(ctx, path, sum, rest)
}

// stretch fills b from offset off. The file of a segment that was not sealed may end
// before the padding of its last record.
func (s *Segment) stretch(b []byte, off int64) error {
	err := s.ReadAt(b, uint32(off))
	for n := len(b) - 1; errors.Is(err, io.EOF) && off+int64(len(b)) == s.end && n > len(b)-recordAlign; n-- {
		clear(b[n:])
		err = s.ReadAt(b[:n], uint32(off))
	}
	return err
}

// readBack makes sure that a packed copy reads as what it was made of: it is about to be all there is.
func (j *Journal) readBack(ctx context.Context, path string, want uint32, rest func()) (err error) {
	f, err := j.fs.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	p, err := openPacked(f, st.Size())
	if err != nil {
		return err
	}
	var sum uint32
	for i := range p.sums {
		rest()
		b, err := p.block(f, i)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, b)
	}
	if sum != want {
		return errors.New("the packed copy does not read as the segment does: it is not used")
	}
	return nil
}

// replace lets a packed copy take the place of s, unless s was trimmed or the journal closed meanwhile. Whatever a crash
// leaves under the name is whole: the old file or the new one.
func (j *Journal) replace(s *Segment, tmp string, size int64) (taken bool, err error) {
	j.trim.Lock()
	defer j.trim.Unlock()
	j.mu.Lock()
	gone := j.err != nil || !slices.Contains(j.segments, s)
	j.mu.Unlock()
	if gone {
		return false, nil
	}
	f, err := j.fs.Open(tmp)
	if err != nil {
		return false, err
	}
	p, err := openPacked(f, size)
	if err == nil {
		err = vfs.Rename(j.fs, tmp, s.path)
	}
	if err != nil {
		return false, errors.Join(err, f.Close())
	}
	s.swap(&opened{file: f, packed: p})
	j.mu.Lock()
	s.packed = size
	s.sealed.Store(true)
	s.entries = nil // of a segment that a crash left without its index
	j.mu.Unlock()
	return true, nil
}

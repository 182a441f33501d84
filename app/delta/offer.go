package delta

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

// Where nothing is staged of a chunk, the sender offers it by the name of its content, and the receiver takes what it does not find in what
// is staged of the same host.

// Known is a staging directory of the same host, in which a Receive may find what need not be sent.
type Known struct {
	Dir string `json:"dir"`
	// Index is what a Receive there was given as [Options.Index].
	Index string `json:"index"`
}

const (
	// offerOf is how many chunks are offered at once: of 16 MiB.
	offerOf = 256
	// offeredAhead bounds how many chunks are offered and not answered yet: of 64 MiB, so that they are still in memory when they are taken, and a link that
	// is long and fast does not wait.
	offeredAhead = 1024
)

// offered is a chunk of a file that was offered.
type offered struct {
	number int64
	sum    sum
}

// waiting is a chunk that is offered when the answer to the same content is known.
type waiting struct {
	id uint64
	o  *sending
	c  offered
}

// offer offers a chunk of a file with the content of b. Nobody is asked twice for the same content at a time: what is taken of it now is found
// the second time.
func (s *sender) offer(ctx context.Context, id uint64, o *sending, number int64, b []byte) error {
	if isZero(b) {
		return nil // so is what is staged
	}
	c := offered{number, sha256.Sum256(b)}
	s.ahead++
	if _, asked := s.asked[c.sum]; asked {
		o.owed++
		s.asked[c.sum] = append(s.asked[c.sum], waiting{id, o, c})
	} else {
		s.asked[c.sum] = nil
		o.offers = append(o.offers, c)
	}
	if len(o.offers) >= offerOf {
		if err := s.sendOffers(ctx, id, o); err != nil {
			return err
		}
	}
	for s.ahead >= offeredAhead {
		// Whatever we wait for must have been asked.
		if err := s.sendOffers(ctx, id, o); err != nil {
			return err
		}
		m, err := s.take(ctx, &s.answers)
		if err == nil {
			err = s.serve(ctx, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sendOffers sends the offers that were gathered of a file.
func (s *sender) sendOffers(ctx context.Context, id uint64, o *sending) error {
	if len(o.offers) == 0 {
		return nil
	}
	body := make([]byte, 0, len(o.offers)*(len(sum{})+3))
	for _, c := range o.offers {
		body = append(binary.AppendUvarint(body, uint64(c.number)), c.sum[:]...)
	}
	o.unanswered = append(o.unanswered, o.offers)
	o.offers = nil
	o.owed++
	return s.send(ctx, message{kind: msgOffer, id: id, body: body})
}

// serveTaken sends what is taken of the eldest offers of a file, and offers what has waited for that.
func (s *sender) serveTaken(ctx context.Context, m message, o *sending) error {
	if o == nil || len(o.unanswered) == 0 {
		return errMalformed
	}
	answered := o.unanswered[0]
	o.unanswered = o.unanswered[1:]
	o.owed--
	p := parser{b: m.body}
	for len(p.b) > 0 {
		number := p.length()
		if p.err != nil || number > 1<<46 {
			return errMalformed
		}
		n, err := o.f.ReadAt(s.buf, number*chunkSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := s.differing(ctx, message{flag: dataTaken, id: m.id, off: number * chunkSize}, nil, block.BlockSize, s.buf[:n], nil); err != nil {
			return err
		}
	}
	s.ahead -= len(answered)
	for _, c := range answered {
		later := s.asked[c.sum]
		delete(s.asked, c.sum)
		for _, w := range later {
			w.o.owed--
			w.o.offers = append(w.o.offers, w.c)
			if err := s.sendOffers(ctx, w.id, w.o); err != nil {
				return err
			}
		}
	}
	return s.endServed(ctx, m.id, o)
}

// offer looks for chunks that the sender has, and takes those that are not found.
func (r *receiver) offer(ctx context.Context, f *file, list []byte) error {
	if f.probe {
		return malformed("an offer of a file that is only looked at")
	}
	var take []byte
	p := parser{b: list}
	for n := 0; len(p.b) > 0; n++ {
		number := p.length()
		if p.err != nil || number > 1<<46 || len(p.b) < len(sum{}) || n >= offerOf {
			return malformed("an offer")
		}
		s := sum(p.b)
		p.b = p.b[len(s):]
		size, err := r.find(f, number*chunkSize, s)
		if err != nil {
			return err
		}
		if size == 0 {
			take = binary.AppendUvarint(take, uint64(number))
		}
		if r.notes != nil && number*chunkSize < f.attr.Size {
			r.notes.add(s, &f.named, number)
		}
	}
	return r.send(ctx, message{kind: msgTake, id: f.id, name: f.path, body: take})
}

// find writes a chunk that is staged somewhere of the same host to a file, and returns its length: 0 if it was not found.
func (r *receiver) find(f *file, off int64, s sum) (int, error) {
	for c := range r.candidates(s.key()) {
		n := c.read(r.chunk)
		if n == 0 || sha256.Sum256(r.chunk[:n]) != s {
			continue
		}
		// Zeros are there already, as in what is sent.
		for i := 0; i < n; i += block.BlockSize {
			piece := r.chunk[i:min(i+block.BlockSize, n)]
			if isZero(piece) {
				continue
			}
			if _, err := r.gone.write(f, piece, off+int64(i)); err != nil {
				return 0, err
			}
		}
		f.behind += n
		r.mu.Lock()
		defer r.mu.Unlock()
		r.st.ChangedBytes += int64(n)
		r.st.FoundBytes += int64(n)
		r.progress(f, off+int64(n))
		return n, nil
	}
	return 0, nil
}

// candidate is where a chunk may be.
type candidate struct {
	dir, path string
	number    uint32
}

// candidates are where chunks with a key may be: in what this Receive has staged, in the rest of its staging directory, and in others of the same host.
func (r *receiver) candidates(key uint64) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		if r.notes == nil {
			return
		}
		each := func(dir string, found []place, path func(uint32) (string, error)) bool {
			for _, p := range found {
				name, err := path(p.path)
				if err != nil {
					continue
				}
				if !yield(candidate{dir, name, p.number}) {
					return false
				}
				if dir != r.root {
					continue
				}
				if gone, ok := r.gone.where(name); ok && !yield(candidate{dir, gone, p.number}) {
					return false
				}
			}
			return true
		}
		if !each(r.root, r.notes.find(key), r.notes.path) || !each(r.root, r.old.find(key), r.old.path) {
			return
		}
		for i, x := range r.indexes {
			if !each(r.opts.Known[i].Dir, x.find(key), x.path) {
				return
			}
		}
	}
}

// read reads the chunk at a place into b, and returns its length: 0 if there is none. Nothing is held open: staging directories are unmounted by others.
func (c candidate) read(b []byte) int {
	top, err := os.OpenRoot(c.dir)
	if err != nil {
		return 0
	}
	defer top.Close()
	f, err := top.OpenFile(c.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return 0
	}
	n, err := f.ReadAt(b, int64(c.number)*chunkSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	return n
}

// openIndexes opens what is known of the chunks of this staging directory and others. What cannot be opened knows nothing.
func (r *receiver) openIndexes() {
	r.gone = &gone{top: r.top, root: r.root}
	if r.opts.Index == "" {
		return
	}
	dir := filepath.Dir(r.opts.Index)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		r.notes, err = newNotes(dir)
	}
	if err != nil {
		r.warn("it cannot be noted what is staged, and what is elsewhere now travels: %v", err)
		return
	}
	r.gone.keep = true
	r.old, _ = openIndex(r.opts.Index)
	for _, k := range r.opts.Known {
		x, _ := openIndex(k.Index)
		r.indexes = append(r.indexes, x)
	}
}

// closeIndexes notes what was staged, however the Receive has ended: whoever looks there sees whether it is so.
func (r *receiver) closeIndexes() {
	if r.notes == nil {
		return
	}
	if r.notes.count > 0 || r.gone.any() {
		if err := r.notes.save(r.opts.Index, r.old, r.root, r.gone.where); err != nil {
			r.warn("it cannot be noted what is staged, and what is elsewhere then travels: %v", err)
		}
	}
	r.notes.table.Close()
	r.old.close()
	for _, x := range r.indexes {
		x.close()
	}
}

// mostTouched bounds the chunks that are remembered because something was written to them, of all files that are being compared.
const mostTouched = 1 << 20

// touch remembers that a part of a file was written of which something was staged.
func (r *receiver) touch(f *file, off, n int64) {
	if r.notes == nil {
		return
	}
	if f.touched == nil {
		f.touched = map[int64]struct{}{}
	}
	before := len(f.touched)
	for k := off / chunkSize; k*chunkSize < off+n && r.touched < mostTouched; k++ {
		f.touched[k] = struct{}{}
	}
	r.touched += len(f.touched) - before
}

// noteTouched notes the chunks of a file that were touched.
func (r *receiver) noteTouched(ctx context.Context, f *file) error {
	for number := range f.touched {
		n, err := f.out.ReadAt(r.chunk, number*chunkSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.noteChunks(f, number*chunkSize, r.chunk[:n])
	}
	r.touched -= len(f.touched)
	f.touched = nil
	return nil
}

// noteChunks notes the chunks of b, which is staged of a file at off.
func (r *receiver) noteChunks(f *file, off int64, b []byte) {
	if r.notes == nil {
		return
	}
	for ; len(b) > block.BlockSize; b = b[min(chunkSize, len(b)):] {
		if chunk := b[:min(chunkSize, len(b))]; !isZero(chunk) {
			r.notes.add(sha256.Sum256(chunk), &f.named, off/chunkSize)
		}
		off += chunkSize
	}
}

package delta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/block"
)

// check compares files with what is staged, until ctx is done.
func (r *receiver) check(ctx context.Context) error {
	buf := make([]byte, part)
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && ctx.Err() == nil {
			r.turn.Wait()
		}
		if ctx.Err() != nil {
			r.mu.Unlock()
			return nil // whoever has ended it says why
		}
		f := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		r.mu.Unlock()
		if err := r.want(ctx, f, buf); err != nil {
			if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
				return nil
			}
			return fmt.Errorf("stage %q: %w", f.path, err)
		}
	}
}

// want asks for a file, unless it is proven to be staged.
func (r *receiver) want(ctx context.Context, f *file, buf []byte) error {
	have, err := r.staged(f)
	if err != nil {
		return err
	}
	if have != nil && r.unchanged(f, have) {
		r.mu.Lock()
		r.st.Skipped++
		r.samples.add(f)
		r.mu.Unlock()
		return r.settle(ctx, f)
	}
	if have != nil && f.attr.Size < have.Size()/8 && r.gone.keeps() {
		// Nearly all of it is gone, and may be elsewhere now: a log that is written anew has gone on by another name.
		if err := r.gone.dismiss(f.path); err != nil {
			return err
		}
		have = nil
	}
	err = r.gone.room(func() (err error) {
		f.out, err = r.top.OpenFile(f.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	// What it is longer by when it is sent is compared with nothing: so nothing may be there.
	if have != nil && have.Size() > f.attr.Size {
		if err := f.out.Truncate(f.attr.Size); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.nextID++
	f.id, f.whole = r.nextID, false
	r.live[f.id] = f
	r.mu.Unlock()
	for off := int64(0); ; {
		m := message{kind: msgWant, id: f.id, name: f.path, off: off, size: min(emptyPart, f.attr.Size-off)}
		if !hole(f.out, off, m.size) {
			m.size = min(part, m.size)
			if m.body, err = printsOf(f.out, off, m.size, r.seed, buf); err != nil {
				return err
			}
			if have != nil && (r.old == nil || r.prev.Dirty) { // of what came before a cut not all was noted
				r.noteChunks(f, off, buf[:min(m.size, max(have.Size()-off, 0))])
			}
		}
		off += m.size
		m.flag = flag(off >= f.attr.Size)
		if err := r.ask(ctx, f, m); err != nil || m.flag == wantLast {
			return err
		}
	}
}

// ask sends a question when there is room for what is wanted.
func (r *receiver) ask(ctx context.Context, f *file, m message) error {
	weight := min(max(m.size, least), part)
	if err := r.room.Acquire(ctx, weight); err != nil {
		return context.Cause(ctx)
	}
	r.mu.Lock()
	f.parts = append(f.parts, weight)
	f.whole = m.flag != wantMore
	r.mu.Unlock()
	return r.send(ctx, m)
}

// staged looks at what is staged of a file, and takes away what is none or is somebody else's, too. nil: there is nothing.
func (r *receiver) staged(f *file) (fs.FileInfo, error) {
	have, err := r.top.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !have.Mode().IsRegular() {
		return nil, r.top.RemoveAll(f.path)
	}
	st := have.Sys().(*syscall.Stat_t)
	if st.Nlink == 1 {
		return have, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Written in place for one inode of the tree alone.
	if whose := r.claimed[st.Ino]; f.attr.Links > 1 && (whose == 0 || whose == f.attr.Inode) {
		r.claimed[st.Ino] = f.attr.Inode
		return have, nil
	}
	return nil, r.gone.dismiss(f.path)
}

// unchanged is the proof rule: see DESIGN.md.
func (r *receiver) unchanged(f *file, have fs.FileInfo) bool {
	st, a := have.Sys().(*syscall.Stat_t), f.attr
	horizon := r.prev.Started.Add(-r.opts.Margin).UnixNano()
	return r.trust && f.known && f.again == 0 && st.Size == a.Size && st.Mtim.Nano() == a.Modified && a.Modified < horizon && a.Changed < horizon &&
		st.Mode == a.Mode && (os.Geteuid() != 0 || st.Uid == a.UID && st.Gid == a.GID)
}

// settle notes that a file is dealt with, and tells the sender so from time to time.
func (r *receiver) settle(ctx context.Context, f *file) error {
	r.mu.Lock()
	r.left--
	r.progress(f, f.attr.Size)
	r.settled++
	n := r.settled
	if n >= settledEvery {
		r.settled = 0
	}
	r.turn.Broadcast()
	r.mu.Unlock()
	if n < settledEvery {
		return nil
	}
	return r.send(ctx, message{kind: msgSettled, off: n})
}

// progress notes how far what has come of a file reaches. The caller holds mu.
func (r *receiver) progress(f *file, to int64) {
	r.looked += max(to-f.at, 0)
	f.at = max(to, f.at)
	if r.opts.Progress != nil && time.Since(r.lastNote) > 100*time.Millisecond {
		r.lastNote = time.Now()
		r.opts.Progress(tidemark.Progress{Done: min(r.looked, r.st.Bytes), Total: r.st.Bytes, Unit: "bytes"})
	}
}

// content takes what has come of a file.
func (r *receiver) content(ctx context.Context, m message) error {
	r.mu.Lock()
	f := r.live[m.id]
	r.mu.Unlock()
	if f == nil {
		return malformed("a part of file %d", m.id)
	}
	switch m.kind {
	case msgData, msgZero:
		f.differs = true
		if f.probe {
			return nil
		}
		if max(m.size, int64(len(m.body))) > maxData {
			return malformed("%d bytes at once", max(m.size, int64(len(m.body))))
		}
		if m.flag != dataTaken {
			r.touch(f, m.off, max(m.size, int64(len(m.body))))
		}
		if m.kind == msgZero {
			return r.zero(f, m)
		}
		n, err := r.gone.write(f, m.body, m.off)
		if m.flag != dataFiner {
			r.changed(int64(n))
		}
		if f.behind += n; f.behind >= writeBackAfter {
			f.writeBack()
		}
		r.mu.Lock()
		r.progress(f, m.off+int64(n))
		r.mu.Unlock()
		if err != nil {
			return fmt.Errorf("stage %q: %w", f.path, err)
		}
		return nil
	case msgPart:
		return r.release(f)
	case msgDiffer:
		return r.refine(ctx, f, m.body)
	case msgOffer:
		return r.offer(ctx, f, m.body)
	}
	if err := r.release(f); err != nil {
		return err
	}
	r.mu.Lock()
	over := f.whole && len(f.parts) == 0
	delete(r.live, f.id)
	r.mu.Unlock()
	if !over {
		return malformed("an end of file %d, of which more is wanted", m.id)
	}
	if err := r.end(ctx, f, m); err != nil {
		return fmt.Errorf("stage %q: %w", f.path, err)
	}
	return nil
}

// writeBack has the kernel begin to write back what was written to a file.
func (f *file) writeBack() {
	f.behind = 0
	// It is a hint: an error of the disk is met again by the sync that ends a capture.
	_ = unix.SyncFileRange(int(f.out.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}

// refine says at a finer grain what is staged of blocks that differ.
func (r *receiver) refine(ctx context.Context, f *file, list []byte) error {
	if f.probe {
		return malformed("blocks of a file that is only looked at")
	}
	body, n, err := appendFine(nil, f.out, list, r.seed)
	if err != nil {
		return err
	}
	r.changed(int64(n) * block.BlockSize)
	return r.send(ctx, message{kind: msgFiner, id: f.id, name: f.path, body: body})
}

func (r *receiver) changed(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.st.ChangedBytes += n
}

// release makes room, where a part that was wanted has come.
func (r *receiver) release(f *file) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(f.parts) == 0 {
		return malformed("a part of file %d that nobody wanted", f.id)
	}
	r.room.Release(f.parts[0])
	f.parts = f.parts[1:]
	return nil
}

// zero makes a part of a staged file read as zeros; what is behind its end does already.
func (r *receiver) zero(f *file, m message) error {
	off, n := m.off, m.size
	st, err := f.out.Stat()
	if err != nil {
		return err
	}
	if n = min(n, st.Size()-off); n <= 0 {
		return nil
	}
	if m.flag != dataFiner {
		r.changed(n)
	}
	err = unix.Fallocate(int(f.out.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for ; n > 0; n -= block.BlockSize {
		if _, err := f.out.WriteAt(zeros[:min(n, block.BlockSize)], off); err != nil {
			return err
		}
		off += block.BlockSize
	}
	return nil
}

// end deals with a file of which all has come.
func (r *receiver) end(ctx context.Context, f *file, m message) error {
	switch {
	case f.probe:
		return r.endProbe(f, m)
	case m.flag == endGone:
		err := f.out.Close()
		return errors.Join(err, r.gone.dismiss(f.path), r.settle(ctx, f))
	case m.attr == nil || m.attr.Mode&unix.S_IFMT != unix.S_IFREG:
		return malformed("the end of a file that is none")
	}
	f.attr = *m.attr
	st, err := f.out.Stat()
	if err == nil && st.Size() != f.attr.Size {
		err = f.out.Truncate(f.attr.Size)
	}
	if err == nil {
		err = r.noteTouched(ctx, f)
	}
	if f.behind >= writeBackOf {
		f.writeBack()
	}
	out := f.out
	f.out = nil
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if m.flag == endChanged && !r.hello.Torn {
		if f.again++; f.again < attempts {
			r.mu.Lock()
			defer r.mu.Unlock()
			f.differs = false
			r.queue = append(r.queue, f)
			r.turn.Broadcast()
			return nil
		}
		r.mu.Lock()
		if len(r.st.Inconsistent) < mostTold {
			r.st.Inconsistent = append(r.st.Inconsistent, f.path)
		}
		r.mu.Unlock()
	}
	r.mu.Lock()
	r.st.ReadBytes += f.attr.Size
	r.mu.Unlock()
	if err := r.attributes(f.path, f.attr); err != nil {
		return err
	}
	return r.settle(ctx, f)
}

// sampler keeps a sample of files, in which one of many blocks is more often than one of few.
type sampler struct {
	list []sampled
}

type sampled struct {
	key  float64
	file *file
}

func (s *sampler) add(f *file) {
	if f.attr.Size == 0 {
		return
	}
	blocks := float64((f.attr.Size + block.BlockSize - 1) / block.BlockSize)
	x := sampled{math.Pow(rand.Float64(), 1/blocks), f}
	if len(s.list) < defaultSamples {
		s.list = append(s.list, x)
		return
	}
	low := 0
	for i := range s.list {
		if s.list[i].key < s.list[low].key {
			low = i
		}
	}
	if s.list[low].key < x.key {
		s.list[low] = x
	}
}

// sample has a block of each sampled file compared.
func (r *receiver) sample(ctx context.Context) error {
	list := r.samples.list
	r.samples = sampler{}
	if r.opts.Samples < 0 {
		return nil
	}
	buf := make([]byte, block.BlockSize)
	for _, x := range list {
		f := &file{named: named{path: x.file.path}, attr: x.file.attr, probe: true}
		off := rand.Int64N((f.attr.Size+block.BlockSize-1)/block.BlockSize) * block.BlockSize
		n := min(block.BlockSize, f.attr.Size-off)
		in, err := r.top.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		prints, err := printsOf(in, off, n, r.seed, buf)
		if err = errors.Join(err, in.Close()); err != nil {
			return err
		}
		r.mu.Lock()
		r.nextID++
		f.id = r.nextID
		r.live[f.id] = f
		r.left++
		r.st.Sampled++
		r.mu.Unlock()
		if err := r.ask(ctx, f, message{kind: msgWant, flag: wantProbe, id: f.id, name: f.path, off: off, size: n, body: prints}); err != nil {
			return err
		}
	}
	return r.await(ctx, func() bool { return r.left == 0 })
}

// endProbe looks at what came of a sample: a block that differs though its file has the dates that it had.
func (r *receiver) endProbe(f *file, m message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left--
	r.turn.Broadcast()
	if a := m.attr; f.differs && m.flag == endOK && a != nil && a.Modified == f.attr.Modified && a.Changed == f.attr.Changed {
		r.differs = fmt.Sprintf("%q differs from its copy although its dates say that it was not written", f.path)
	}
	return nil
}

// link gives a staged file another name.
func (r *receiver) link(h hardLink) error {
	a, err := r.top.Lstat(h.to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it vanished while it was copied
	}
	if err != nil {
		return err
	}
	if !a.Mode().IsRegular() {
		return malformed("a link to %q", h.to)
	}
	b, err := r.top.Lstat(h.path)
	if err == nil && os.SameFile(a, b) {
		return nil
	}
	if err == nil {
		if err := r.top.RemoveAll(h.path); err != nil {
			return err
		}
	}
	if err := r.gone.room(func() error { return r.top.Link(h.to, h.path) }); err != nil {
		return fmt.Errorf("link %q to %q: %w", h.path, h.to, err)
	}
	return nil
}

// special makes a symbolic link, fifo or device node, unless it is there.
func (r *receiver) special(path string, m message) error {
	full := filepath.Join(r.root, path)
	have, err := r.top.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		st := have.Sys().(*syscall.Stat_t)
		same := st.Mode&unix.S_IFMT == m.attr.Mode&unix.S_IFMT
		if same && m.kind == msgLink {
			target, err := r.top.Readlink(path)
			same = err == nil && target == m.target
		} else if same {
			same = st.Rdev == m.attr.Device
		}
		if same {
			return r.attributes(path, *m.attr)
		}
		if err := r.top.RemoveAll(path); err != nil {
			return err
		}
	}
	err = r.gone.room(func() error {
		if m.kind == msgLink {
			return r.top.Symlink(m.target, path) // any target: nothing of ours follows it
		}
		return unix.Mknod(full, m.attr.Mode&unix.S_IFMT|0o600, int(m.attr.Device))
	})
	if err != nil {
		return fmt.Errorf("make %q: %w", path, err)
	}
	return r.attributes(path, *m.attr)
}

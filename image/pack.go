package image

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"tidemark/internal/vfs"
)

// bufferSize is how many bytes of an open pack are gathered before they are
// written: few large writes, and little memory.
const bufferSize = 2 << 20

// pack is an append-only file of records: in the directory open while it grows,
// in the bucket once sealed.
type pack struct {
	id  uint64
	key string // in the bucket

	condemned atomic.Bool  // about to be deleted: readable, but no Put may count on it
	sealed    atomic.Bool  // it is in the bucket; set once, under fileMu
	stored    atomic.Int64 // its length in bytes
	records   atomic.Int64
	number    atomic.Uint64 // in spots; zero if it has none

	// ioMu serialises write, sync and seal of the file. It is taken before mu and fileMu.
	ioMu   sync.Mutex
	synced int64 // bytes known to be durable; guarded by ioMu
	failed error // of an fsync: what the next one says is no answer; guarded by ioMu
	known  int64 // length of the file, which may reach past the last record after a crash; guarded by ioMu

	fileMu sync.RWMutex // held shared to read file, and exclusively to let go of it
	file   vfs.File     // nil once sealed
	path   string

	mu      sync.Mutex
	written int64   // bytes of whole records in the file; guarded by mu
	writing []byte  // records on their way to the file, at written; guarded by mu
	buf     []byte  // records after those; guarded by mu
	entries []entry // of all records, until sealed; guarded by mu
	untold  int64   // the length that was synced, if no note says so yet; guarded by mu
}

func packKey(id uint64) string { return fmt.Sprintf("packs/%016x", id) }

// end is the length of all records. The caller holds mu.
func (p *pack) end() int64 { return p.written + int64(len(p.writing)+len(p.buf)) }

// full reports that a record of n bytes would overflow the buffer.
func (p *pack) full(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buf) > 0 && len(p.buf)+n > bufferSize
}

// add appends a record to the buffer. It cannot fail: whoever calls made room by flush.
func (p *pack) add(h head, body []byte) (place, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.untold > 0 {
		p.buf = appendNote(p.buf, note{synced: p.untold, count: len(p.entries)}, p.id, p.end())
		p.untold = 0
	}
	h.length = len(body)
	e := entry{head: h, off: p.end()}
	at := place{pack: p.id, ord: uint32(len(p.entries)), off: e.off, length: h.length, kind: h.kind, codec: h.codec, log: h.log}
	if h.codec == codecPatch {
		at.base = patchBase(body)
	}
	p.buf = appendRecord(p.buf, h, body)
	p.entries = append(p.entries, e)
	p.records.Add(1)
	p.stored.Store(e.end())
	return at, e.end()
}

// flush writes what is in the buffers to the file. After an error (a full disk)
// the records stay in the buffer, readable, and the next flush tries again.
func (p *pack) flush() error {
	p.ioMu.Lock()
	defer p.ioMu.Unlock()
	return p.flushLocked()
}

func (p *pack) flushLocked() error {
	for {
		p.mu.Lock()
		if len(p.writing) == 0 {
			p.writing, p.buf = p.buf, p.writing[:0]
		}
		data, at := p.writing, p.written
		p.mu.Unlock()
		if len(data) == 0 {
			return nil
		}
		// The seam may scribble on what Write gets, readers look at writing: WriteAt does not.
		if _, err := p.file.WriteAt(data, at); err != nil {
			return fmt.Errorf("write pack %s: %w", p.path, err)
		}
		p.mu.Lock()
		p.written += int64(len(data))
		p.writing = p.writing[:0]
		p.known = max(p.known, p.written)
		p.mu.Unlock()
	}
}

// errSync wraps the failure of an fsync: nothing in this pack may be acknowledged after it.
var errSync = errors.New("sync failed")

// sync makes all records durable. A failed fsync is an errSync.
func (p *pack) sync() error {
	p.ioMu.Lock()
	defer p.ioMu.Unlock()
	return p.syncLocked()
}

func (p *pack) syncLocked() error {
	if p.file == nil || p.sealed.Load() {
		return nil // durable since it was sealed
	}
	if p.failed != nil {
		return p.failed
	}
	if err := p.flushLocked(); err != nil {
		return err
	}
	if p.synced == p.written { // written is only changed under ioMu
		return nil
	}
	if err := p.file.SyncData(); err != nil {
		return p.fail(err)
	}
	p.setSynced()
	return nil
}

// setSynced notes that what is written is durable. The caller holds ioMu.
func (p *pack) setSynced() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced, p.untold = p.written, p.written
}

// writeAgain writes all from offset from on over itself: see [vfs.WriteAgain].
func (p *pack) writeAgain(from int64) error {
	p.ioMu.Lock()
	defer p.ioMu.Unlock()
	return vfs.WriteAgain(p.file, from, p.written)
}

// fail notes the failure of an fsync, after which no other of the file means anything: the kernel tells it once, and takes what was not written for
// clean. The caller holds ioMu.
func (p *pack) fail(err error) error {
	p.failed = fmt.Errorf("%w: pack %s: %w", errSync, p.path, err)
	return p.failed
}

// seal writes the footer and makes the file durable: it is then ready for the bucket.
func (p *pack) seal() error {
	p.ioMu.Lock()
	defer p.ioMu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	if err := p.flushLocked(); err != nil {
		return err
	}
	p.mu.Lock()
	footer := appendFooter(nil, p.id, p.entries)
	p.mu.Unlock()
	// The trailer must be the end of the file. Where a crash left rubbish beyond
	// the last record the footer begins late enough to end where the file does.
	at := max(p.written, p.known-int64(len(footer)))
	if _, err := p.file.WriteAt(footer, at); err != nil {
		p.known = max(p.known, p.written) + int64(len(footer)) // some of it may be there
		return fmt.Errorf("write footer of %s: %w", p.path, err)
	}
	p.known = at + int64(len(footer))
	if err := p.file.Sync(); err != nil {
		return p.fail(err)
	}
	p.synced = p.written
	p.stored.Store(p.known)
	return nil
}

// letGo closes the file of a pack that is in the bucket now.
func (p *pack) letGo() error {
	p.ioMu.Lock()
	defer p.ioMu.Unlock()
	p.fileMu.Lock()
	defer p.fileMu.Unlock()
	p.sealed.Store(true)
	err := p.file.Close()
	p.file = nil
	p.mu.Lock()
	p.entries, p.buf, p.writing = nil, nil, nil
	p.mu.Unlock()
	return err
}

// readOpen reads len(dst) bytes at off of an open pack; ok is false if it has been sealed.
func (p *pack) readOpen(dst []byte, off int64) (ok bool, err error) {
	p.fileMu.RLock()
	defer p.fileMu.RUnlock()
	if p.sealed.Load() || p.file == nil {
		return false, nil
	}
	p.mu.Lock()
	n := -1
	switch a := off - p.written; {
	case a < 0:
	case a < int64(len(p.writing)):
		n = copy(dst, p.writing[a:])
	case a-int64(len(p.writing)) < int64(len(p.buf)):
		n = copy(dst, p.buf[a-int64(len(p.writing)):])
	default:
		n = 0
	}
	p.mu.Unlock()
	if n < 0 {
		n, err = p.file.ReadAt(dst, off)
	}
	if n == len(dst) {
		return true, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return true, err
}

package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"tidemark/internal/vfs"
)

// extentSize is the grain, in bytes, of what a power cut leaves to be sent again: an extent is
// noted durably before its first write, so a larger one means fewer waits and more to send.
const extentSize = 64 << 20

// active is which extents of a disk are being written, on a medium: all that a power
// cut can have separated from the timeline lies in them. Its file is pages of activePage bytes, each bits and
// their CRC-32C; a page that is not there or does not match stands for all of its extents.
type active struct {
	mu   sync.Mutex
	file vfs.File
	set  bitmap // as in the file
	sure bitmap // of these, those that the file has durably
}

const (
	activePage = 512
	activeBits = (activePage - 4) * 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readActive returns what the file says of a disk of so many extents: all of them if there is no file.
func readActive(fs vfs.FS, path string, extents int64) (bitmap, error) {
	b := newBitmap(extents)
	data, err := vfs.ReadFile(fs, path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return b, fmt.Errorf("read which parts of the disk were written: %w", err)
	}
	for first := int64(0); first < extents; first += activeBits {
		page := []byte(nil)
		if at := first / activeBits * activePage; at+activePage <= int64(len(data)) {
			page = data[at : at+activePage]
		}
		last := min(first+activeBits, extents)
		if page == nil || crc32.Checksum(page[4:], castagnoli) != binary.LittleEndian.Uint32(page) {
			b.setRange(first, last)
			continue
		}
		for i := first; i < last; i++ {
			if bit := i - first; page[4+bit/8]&(1<<(bit%8)) != 0 {
				b.set(i)
			}
		}
	}
	return b, nil
}

// newActive makes the file anew, durably, with the extents of b.
func newActive(fs vfs.FS, path string, b bitmap) (*active, error) {
	a := &active{set: b, sure: newBitmap(b.n)}
	var data []byte
	for first := int64(0); first < b.n; first += activeBits {
		data = append(data, a.page(first)...)
	}
	if err := vfs.WriteFile(fs, path, data); err != nil {
		return nil, err
	}
	copy(a.sure.words, b.words)
	var err error
	a.file, err = vfs.OpenReadWrite(fs, path)
	return a, err
}

// page encodes the page whose first extent is first.
func (a *active) page(first int64) []byte {
	page := make([]byte, activePage)
	for i := first; i < min(first+activeBits, a.set.n); i++ {
		if bit := i - first; a.set.get(i) {
			page[4+bit/8] |= 1 << (bit % 8)
		}
	}
	binary.LittleEndian.PutUint32(page, crc32.Checksum(page[4:], castagnoli))
	return page
}

// begin notes durably that extent i is written from now on.
func (a *active) begin(i int64) error {
	if a.sure.get(i) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sure.get(i) {
		return nil
	}
	a.set.set(i)
	err := a.write(i)
	if err == nil {
		err = a.file.SyncData()
	}
	if err != nil {
		return fmt.Errorf("note which part of the disk is written: %w", err)
	}
	a.sure.set(i)
	return nil
}

// beginAll is begin for all extents at once.
func (a *active) beginAll() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.set.setRange(0, a.set.n)
	var data []byte
	for first := int64(0); first < a.set.n; first += activeBits {
		data = append(data, a.page(first)...)
	}
	_, err := a.file.WriteAt(data, 0)
	if err == nil {
		err = a.file.SyncData()
	}
	if err != nil {
		return fmt.Errorf("note that all of the disk is to be sent: %w", err)
	}
	a.sure.setRange(0, a.set.n)
	return nil
}

// end notes that extent i is not written any more, and all of it is with the timeline. It need not be
// durable. The caller keeps others from beginning it.
func (a *active) end(i int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sure.clear(i)
	if !a.set.clear(i) {
		return nil
	}
	return a.write(i)
}

func (a *active) write(i int64) error {
	first := i - i%activeBits
	_, err := a.file.WriteAt(a.page(first), first/activeBits*activePage)
	return err
}

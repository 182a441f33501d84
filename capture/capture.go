// Package capture says how changes reach a timeline: what a [Change] of a disk is, and the
// [Sink] that takes a stream of them in order. Sources (a tap in the path of a disk's writes) and sinks
// (a timeline here, or a connection to the server that has it) do not know each other.
package capture

import (
	"errors"
	"fmt"

	"tidemark/block"
)

// MaxChange is the longest change with data, in bytes; no such change crosses a multiple of it.
const MaxChange = 1 << 20

// Change is one write to one disk. It lies within one block of 4 KiB, or is made of whole blocks: so a
// timeline keeps it as one record, and can tell from what it holds how far a stream has come.
// The end of a disk ends its last block.
type Change struct {
	Disk uint16 // number of the disk in its timeline
	Off  int64  // bytes
	Len  int64  // bytes
	Data []byte // Len bytes; nil: zeros
	Time int64  // Unix nanoseconds: when the disk had it
}

// ErrChange: there can be no such change.
var ErrChange = errors.New("an impossible change")

// Check returns an error that wraps [ErrChange] unless a disk of size bytes can have the change.
func (c *Change) Check(size int64) error {
	end := c.Off + c.Len
	inside := c.Off >= 0 && c.Len > 0 && end > c.Off && end <= size
	whole := c.Off%block.BlockSize == 0 && (end%block.BlockSize == 0 || end == size)
	one := inside && c.Off/block.BlockSize == (end-1)/block.BlockSize
	fits := c.Data == nil || int64(len(c.Data)) == c.Len && c.Off/MaxChange == (end-1)/MaxChange
	if !inside || !whole && !one || !fits {
		return fmt.Errorf("%w: %d bytes at %d, with %d of data, of a disk of %d", ErrChange, c.Len, c.Off, len(c.Data), size)
	}
	return nil
}

// Split cuts a range into pieces that can each be a change with data, in order.
func Split(off, n int64, piece func(off, n int64) error) error {
	for end := off + n; off < end; {
		next := min(end, (off/MaxChange+1)*MaxChange)
		switch head := off % block.BlockSize; {
		case head != 0:
			next = min(end, off-head+block.BlockSize)
		case next%block.BlockSize != 0 && next-off > block.BlockSize:
			next -= next % block.BlockSize
		}
		if err := piece(off, next-off); err != nil {
			return err
		}
		off = next
	}
	return nil
}

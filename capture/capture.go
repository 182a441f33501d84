// Package capture says how changes reach a timeline: what a [Change] of a disk is, and the
// [Sink] that takes a stream of them in order. Sources (a tap in the path of a disk's writes) and sinks
// (a timeline here, or a connection to the server that has it) do not know each other.
package capture

import (
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/internal/shared"
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

	// Memory is what Data lie in, at the offset At, if the source shares it; nil: Data are nobody else's. Then Sum is their CRC-32C ([shared.Sum]), and
	// a sink believes nothing of Data but a copy that fits it: see [Change.Own].
	Memory *shared.Memory
	At     int64
	Sum    uint32
}

// ErrChanged: the data of a change in shared memory are not what its source had put there.
var ErrChanged = errors.New("the data of a change have changed on their way")

// Own replaces data in shared memory by a copy, which is what the source had put there; if it is something else, the error wraps [ErrChanged].
func (c *Change) Own() error {
	if c.Memory == nil {
		return nil
	}
	data := make([]byte, len(c.Data))
	if err := shared.Copy(data, c.Data, c.Sum); err != nil {
		return fmt.Errorf("%w: %d bytes at %d of disk %d: %w", ErrChanged, c.Len, c.Off, c.Disk, err)
	}
	c.Data, c.Memory = data, nil
	return nil
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

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/capture"
	"tidemark/internal/shared"
)

// On one host the data of changes stay where they are: the client passes its memory with its greeting, and a frame of changes says
// where in it their data lie.

// sharedSize is the length of a change whose data lie in shared memory.
const sharedSize = 40

// Flags of a change.
const (
	flagData = 0
	flagZero = 1
)

// encodeShared returns the body of a frame of changes whose data lie in shared memory.
func encodeShared(list []capture.Change) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(make([]byte, 0, 4+len(list)*sharedSize), uint32(len(list)))
	for i := range list {
		c := &list[i]
		flags, at, sum := uint16(flagData), c.At, c.Sum
		if c.Data == nil {
			flags, at, sum = flagZero, 0, 0
		}
		b = le.AppendUint16(b, c.Disk)
		b = le.AppendUint16(b, flags)
		b = le.AppendUint32(b, sum)
		b = le.AppendUint64(b, uint64(c.Time))
		b = le.AppendUint64(b, uint64(c.Off))
		b = le.AppendUint64(b, uint64(c.Len))
		b = le.AppendUint64(b, uint64(at))
	}
	return b
}

// parseShared is the reverse of encodeShared. The data are not looked at, and lie within the memory. Whether a disk can
// have the changes is not looked at.
func parseShared(b []byte, m *shared.Memory) ([]capture.Change, error) {
	if m == nil {
		return nil, fmt.Errorf("%w: changes in memory that is not shared", ErrProtocol)
	}
	le := binary.LittleEndian
	if len(b) < 4 || int64(len(b)-4) != int64(le.Uint32(b))*sharedSize {
		return nil, fmt.Errorf("%w: changes of %d bytes", ErrProtocol, len(b))
	}
	b = b[4:]
	list := make([]capture.Change, len(b)/sharedSize)
	for i := range list {
		p, c := b[i*sharedSize:], &list[i]
		c.Disk, c.Sum, c.Time = le.Uint16(p), le.Uint32(p[4:]), int64(le.Uint64(p[8:]))
		c.Off, c.Len, c.At = int64(le.Uint64(p[16:])), int64(le.Uint64(p[24:])), int64(le.Uint64(p[32:]))
		switch flags := le.Uint16(p[2:]); {
		case flags == flagZero && c.Sum == 0 && c.At == 0:
		case flags == flagData && c.Len >= 0 && c.At >= 0 && c.At <= int64(len(m.Bytes())) && c.Len <= int64(len(m.Bytes()))-c.At:
			c.Memory, c.Data = m, m.Bytes()[c.At:c.At+c.Len:c.At+c.Len]
		default:
			return nil, fmt.Errorf("%w: a change of %d bytes at %d of %d that are shared", ErrProtocol, c.Len, c.At, len(m.Bytes()))
		}
	}
	return list, nil
}

// writePassing sends a frame, and a descriptor with its beginning.
func writePassing(conn *net.UnixConn, f *os.File, kind byte, body []byte) error {
	frame := append(header(kind, body), body...)
	n, _, err := conn.WriteMsgUnix(frame, unix.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(frame) {
		_, err = conn.Write(frame[n:])
	}
	return err
}

// maxPassed is how many descriptors are taken, to be closed, from somebody who passes more than one.
const maxPassed = 16

// passing reads from a socket, and takes the descriptors that come with the first bytes. Those that come later the kernel
// drops.
type passing struct {
	conn  *net.UnixConn
	first bool // it was read from
	files []*os.File
	more  bool // there were more of them
}

// Read implements io.Reader.
func (p *passing) Read(b []byte) (int, error) {
	if p.first {
		return p.conn.Read(b)
	}
	p.first = true
	oob := make([]byte, unix.CmsgSpace(maxPassed*4))
	n, k, flags, _, err := p.conn.ReadMsgUnix(b, oob)
	p.more = flags&unix.MSG_CTRUNC != 0
	messages, cerr := unix.ParseSocketControlMessage(oob[:k])
	for i := range messages {
		fds, rerr := unix.ParseUnixRights(&messages[i])
		cerr = errors.Join(cerr, rerr)
		for _, fd := range fds {
			p.files = append(p.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if err == nil && cerr != nil {
		err = fmt.Errorf("%w: what came with it: %w", ErrProtocol, cerr)
	}
	return n, err
}

func (p *passing) close() {
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

// memory maps the memory that was passed, of size bytes as the client says. It is nil if it was lost on its way, by somebody who carries connections, or
// cannot be mapped; then the data are carried.
func (p *passing) memory(size uint64) (*shared.Memory, error) {
	switch {
	case p.more || len(p.files) > 1 || size == 0 && len(p.files) > 0 || size > math.MaxInt64:
		return nil, fmt.Errorf("%w: %d descriptors for %d bytes of memory", ErrProtocol, len(p.files), size)
	case len(p.files) == 0:
		return nil, nil
	}
	f := p.files[0]
	p.files = nil
	m, err := shared.Open(f, int64(size))
	if errors.Is(err, shared.ErrUnsafe) {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if err != nil {
		return nil, nil // this host has no room for it
	}
	return m, nil
}

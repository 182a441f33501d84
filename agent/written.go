package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/block"
)

// OpenTapped opens the devices of an application's tapped disks on this host for the caller alone, for direct I/O, also
// where they are withheld. That one is in use is an error of kind Conflict.
func (p Places) OpenTapped(t Tapping) (devices []*os.File, err error) {
	for _, d := range t.Disks {
		path := p.Device(t.Application, d.Name, len(t.Disks))
		device, err := p.shownDevice(t, d)
		if err != nil {
			closeAll(devices)
			return nil, err
		}
		f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT|unix.O_EXCL, 0)
		if err == nil {
			devices = append(devices, f)
			continue
		}
		closeAll(devices)
		if errors.Is(err, unix.EBUSY) {
			return nil, tidemark.Errorf(tidemark.Conflict, "%s is in use", path).WithHint("stop the application and unmount it first (`findmnt " + path + "`)")
		}
		return nil, tidemark.Errorf(tidemark.Unavailable, "%w", err).WithHint("`tidemark status` says how the tap is")
	}
	return devices, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// doWriteTapped writes to tapped disks what the server sends on a connection of its own, until that ends.
func doWriteTapped(ctx context.Context, s *session, w writing, _ func(any)) (none, error) {
	if err := w.check(); err != nil {
		return none{}, err
	}
	if s.dial == nil || len(w.Ticket) != ticketSize {
		return none{}, tidemark.Errorf(tidemark.Invalid, "this agent is not asked to write by a connection")
	}
	devices, err := s.places.OpenTapped(w.Tapping)
	if err != nil {
		return none{}, err
	}
	defer closeAll(devices)
	conn, err := s.dial(ctx, remote.WriteBack)
	if err != nil {
		return none{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err = io.WriteString(conn, w.Ticket); err == nil {
		err = writePieces(conn, w.Tapping, devices)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return none{}, err
}

// writePieces writes what comes, until the sender has ended. An error of kind Unavailable is of the connection, any
// other of a disk.
func writePieces(conn io.ReadWriter, t Tapping, devices []*os.File) error {
	buf, written := block.Aligned(maxPiece), make([]int64, len(devices))
	for {
		p, data, err := readPiece(conn, buf)
		if err == io.EOF {
			return nil
		}
		if err == nil && int(p.disk) >= len(devices) {
			err = fmt.Errorf("a piece of disk %d", p.disk)
		}
		if err != nil {
			return tidemark.Errorf(tidemark.Unavailable, "the server is not heard any more: %w", err)
		}
		switch i := p.disk; p.kind {
		case pieceWrite:
			if _, err := devices[i].WriteAt(data, p.off); err != nil {
				return fmt.Errorf("write disk %s: %w", t.Disks[i].Name, err)
			}
			written[i] += int64(len(data))
		case pieceFlush:
			if err := devices[i].Sync(); err != nil {
				return fmt.Errorf("flush disk %s: %w", t.Disks[i].Name, err)
			}
			if err := writePiece(conn, piece{kind: pieceFlushed, disk: i, off: written[i]}, nil); err != nil {
				return tidemark.Errorf(tidemark.Unavailable, "the server is not heard any more: %w", err)
			}
		default:
			return tidemark.Errorf(tidemark.Invalid, "the server sends a piece of kind %d", p.kind).WithHint("server and agent must be of one version")
		}
	}
}

package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	"tidemark"
)

// The disks of another host are written by its agent, which opens them when it is called, and then dials us: on that connection we
// send what is to be written where. So the agent gets what a job of ours writes to disks of its host, and can ask for nothing.

// ErrInterrupted: it is not known what was written since the last flush, because the agent or the connection to it is gone.
// Whoever opens the disks again can go on.
var ErrInterrupted = errors.New("the disks are not open any more")

// WriteBack is tapped disks of another host that are open for the server alone. It may be used concurrently.
type WriteBack struct {
	host   string
	conn   net.Conn
	asked  context.Context    // of who has opened them
	cancel context.CancelFunc // of the call
	ended  chan none          // closed when the call has ended, and the disks are closed
	err    error              // of the call; set before ended is closed

	mu   sync.Mutex // held while a frame is sent, and until its answer has come
	sent []int64    // to each disk, in bytes
}

// writing is what the agent is called with.
type writing struct {
	Tapping
	Ticket string `json:"ticket"`
}

// dialled is a connection that came with a ticket.
type dialled struct {
	conn  net.Conn
	taken chan none
}

// ticketSize is the length of a ticket, in bytes: that of [rand.Text].
const ticketSize = 26

// OpenTapped opens the tapped disks of an application on another host, so that nobody else can use them until they are closed, or ctx is
// done. That one is in use is an error of kind Conflict.
func (a *Agent) OpenTapped(ctx context.Context, t Tapping) (*WriteBack, error) {
	w := &WriteBack{host: a.host, asked: ctx, ended: make(chan none), sent: make([]int64, len(t.Disks))}
	ctx, w.cancel = context.WithCancel(ctx)
	ticket, came := rand.Text(), make(chan dialled, 1)
	a.expect(ticket, came)
	go func() {
		_, w.err = do[none](ctx, a, "tap-write", writing{t, ticket}, nil)
		close(w.ended)
	}()
	var d dialled
	select {
	case d = <-came:
	case <-w.ended:
		w.cancel()
		a.expect(ticket, nil)
		select {
		case d = <-came: // it is of no use any more
			close(d.taken)
		default:
		}
		if w.lost() {
			return nil, tidemark.Errorf(tidemark.Unavailable, "the agent of host %s has ended before the disks were open", a.host).WithHint("try again when it is there: `tidemark host ls`")
		}
		return nil, w.err
	}
	w.conn = d.conn
	context.AfterFunc(ctx, func() { w.conn.Close() })
	go func() {
		<-w.ended
		w.cancel()
		close(d.taken)
	}()
	return w, nil
}

// expect has the connection that brings a ticket sent to a channel; nil: not any more.
func (a *Agent) expect(ticket string, to chan<- dialled) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if to == nil {
		delete(a.expected, ticket)
		return
	}
	if a.expected == nil {
		a.expected = map[string]chan<- dialled{}
	}
	a.expected[ticket] = to
}

// TakeTicket takes a connection that the agent has dialled for an OpenTapped, a SendTree or a ForwardPostgres of ours, by the ticket that comes first, and returns
// when that is over. The caller closes it.
func (a *Agent) TakeTicket(conn net.Conn) {
	ticket := make([]byte, ticketSize)
	if conn.SetReadDeadline(time.Now().Add(graceTime)) != nil {
		return
	}
	if _, err := io.ReadFull(conn, ticket); err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		return
	}
	d := dialled{conn, make(chan none)}
	a.mu.Lock()
	to := a.expected[string(ticket)]
	delete(a.expected, string(ticket))
	if to != nil {
		to <- d // has room for the one that comes
	}
	a.mu.Unlock()
	if to != nil {
		<-d.taken
	}
}

// Close closes the disks: others can use them when it returns, if the host answers. What was not flushed may be there or not.
func (w *WriteBack) Close() error {
	err := w.conn.Close() // which the agent understands
	w.await()
	return err
}

// await waits for the end of the call, and cuts it if that takes too long.
func (w *WriteBack) await() {
	select {
	case <-w.ended:
	case <-time.After(graceTime):
		w.cancel()
		<-w.ended
	}
}

// broken says why no more can be sent.
func (w *WriteBack) broken(err error) error {
	w.conn.Close()
	w.await()
	if w.lost() || tidemark.KindOf(w.err) == tidemark.Unavailable {
		if stopped := w.asked.Err(); stopped != nil { // the agent may see the end of the connection before it is told why
			return stopped
		}
		return fmt.Errorf("%w: %w", ErrInterrupted, errors.Join(w.err, err))
	}
	return w.err // it is the disk, or we were told to stop
}

// lost reports whether the call has ended for no reason of its own: an agent that is stopped cancels what it does.
func (w *WriteBack) lost() bool {
	return w.err == nil || errors.Is(w.err, context.Canceled) && w.asked.Err() == nil
}

// TappedDisk is one disk of a [WriteBack].
type TappedDisk struct {
	w *WriteBack
	i int
}

// Disk returns the i-th disk.
func (w *WriteBack) Disk(i int) TappedDisk { return TappedDisk{w, i} }

// WriteAt sends p to be written at off. That it was written is known after Sync. After an error that wraps [ErrInterrupted]
// it can be gone on with when the disks were opened again; any other is of the disk, or of the context.
func (d TappedDisk) WriteAt(p []byte, off int64) (n int, err error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	for n < len(p) {
		part := p[n:min(n+maxPiece, len(p))]
		if err := writePiece(d.w.conn, piece{kind: pieceWrite, disk: uint16(d.i), off: off + int64(n)}, part); err != nil {
			return n, d.w.broken(err)
		}
		n += len(part)
		d.w.sent[d.i] += int64(len(part))
	}
	return n, nil
}

// Sync returns when all that was sent to the disk is durable there. Errors are those of WriteAt.
func (d TappedDisk) Sync() error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := writePiece(d.w.conn, piece{kind: pieceFlush, disk: uint16(d.i)}, nil); err != nil {
		return d.w.broken(err)
	}
	p, _, err := readPiece(d.w.conn, nil)
	if err != nil {
		return d.w.broken(err)
	}
	if p.kind != pieceFlushed || int(p.disk) != d.i || p.off != d.w.sent[d.i] {
		return fmt.Errorf("the agent of host %s has flushed %d bytes of disk %d, where %d of disk %d were sent", d.w.host, p.off, p.disk, d.w.sent[d.i], d.i)
	}
	return nil
}

// Kinds of pieces.
const (
	pieceWrite   = 1
	pieceFlush   = 2
	pieceFlushed = 66
)

// piece is what comes before the data on the connection.
type piece struct {
	kind byte
	disk uint16
	off  int64 // of pieceFlushed: how many bytes were written to the disk
}

const (
	pieceHead = 20
	maxPiece  = 1 << 20 // bytes of data
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func writePiece(w io.Writer, p piece, data []byte) error {
	head := make([]byte, 0, pieceHead)
	head = append(head, p.kind, 0)
	head = binary.LittleEndian.AppendUint16(head, p.disk)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(data)))
	head = binary.LittleEndian.AppendUint64(head, uint64(p.off))
	head = binary.LittleEndian.AppendUint32(head, crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, data))
	if _, err := w.Write(head); err != nil || len(data) == 0 {
		return err
	}
	_, err := w.Write(data)
	return err
}

// readPiece reads a piece, its data into buf. io.EOF: there was none.
func readPiece(r io.Reader, buf []byte) (p piece, data []byte, err error) {
	var head [pieceHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return p, nil, err
	}
	n := binary.LittleEndian.Uint32(head[4:])
	p = piece{head[0], binary.LittleEndian.Uint16(head[2:]), int64(binary.LittleEndian.Uint64(head[8:]))}
	if int64(n) > int64(len(buf)) || head[1] != 0 || p.off < 0 {
		return p, nil, fmt.Errorf("a piece of kind %d and %d bytes", p.kind, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return p, nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	if sum := crc32.Update(crc32.Checksum(head[:16], castagnoli), castagnoli, buf[:n]); sum != binary.LittleEndian.Uint32(head[16:]) {
		return p, nil, errors.New("a piece was damaged on its way")
	}
	return p, buf[:n], nil
}

package delta

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark/block"
)

// Hello is what a sender says of its tree before anything else.
type Hello struct {
	// Owner is whose tree it is, for ever: another one is not staged where this one is. Empty: nobody says.
	Owner string `json:"owner,omitempty"`
	// Line is the history that the tree is part of, such as its file system or the timeline of a database; and Position how far it
	// has come there. Dates prove nothing about what was staged of another history, or later in this one.
	Line     string `json:"line"`
	Position uint64 `json:"position"`
	// Now is the sender's clock, by which its dates are.
	Now time.Time `json:"now"`
	// Torn: a file may be of different moments, and is not read again because it changed meanwhile.
	Torn bool `json:"torn,omitempty"`
}

// Source is a tree that can be sent. One goroutine walks it while another opens its files.
type Source interface {
	// Hello is asked for once, before the first walk.
	Hello() Hello
	// Walk tells what is in the tree. Round counts from 0; the next begins when all that the receiver wanted of the last has been sent. last:
	// there is no other. The first round may be walked more than once.
	Walk(ctx context.Context, round int, w *Walk) (last bool, err error)
	// Open opens a file of the tree by its path. That it is gone is [fs.ErrNotExist].
	Open(path string) (*os.File, error)
	// Attr is what is known of an open file.
	Attr(f *os.File) (Attr, error)
	// Result is asked for once, behind the last round: where the tree has come to by then, and what the source has to tell.
	Result() (position uint64, result any)
}

// sender is one run of Send.
type sender struct {
	*stream
	src  Source
	seed uint64
	next chan bool // the receiver has all of this round; true: once more

	mu      sync.Mutex
	wants   []message // guarded by mu, like all below
	answers []message // to what was asked of a file that is being sent: they come first
	told    int64     // files
	settled int64
	changed *sync.Cond

	open  map[uint64]*sending // used by serve alone, like all below
	buf   []byte
	asked map[sum][]waiting // what is offered, and what has the same content
	ahead int               // chunks that are offered, or wait for that
}

// sending is a file of which something is wanted.
type sending struct {
	f      *os.File
	before Attr
	gone   bool
	differ []byte    // numbers of blocks of this part that differ, for msgDiffer
	offers []offered // chunks of this part, for msgOffer
	// unanswered are the offers that were sent, the eldest first.
	unanswered [][]offered
	owed       int  // how many answers are still to come, and chunks to be offered
	ending     bool // all else was sent
}

// farAhead is how many files may be told that the receiver has not dealt with yet: what it has to remember is bounded so.
const farAhead = 20000

// Send sends a tree to a [Receive] at the other end of a connection, which it closes, and returns when that has
// staged it, durably. Where the connection ended before, the error wraps [ErrLost].
func Send(ctx context.Context, conn net.Conn, src Source) error {
	st, err := newStream(conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer st.close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := &sender{stream: st, src: src, next: make(chan bool, 1), open: map[uint64]*sending{}, buf: make([]byte, maxData), asked: map[sum][]waiting{}}
	s.changed = sync.NewCond(&s.mu)
	defer func() {
		for _, o := range s.open {
			if o.f != nil {
				o.f.Close()
			}
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	over := make(chan struct{}) // closed when the receiver has said all
	defer context.AfterFunc(gctx, func() {
		select {
		case <-over: // it was meant to end
		default:
			conn.Close()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})()
	parted := make(chan struct{}) // closed when we end the connection, having heard that all is durable
	g.Go(func() error { return s.listen(over, parted) })
	g.Go(func() error { return s.serveAll(gctx) })
	g.Go(func() error {
		err := s.tell(gctx, over)
		if err == nil {
			close(parted)
			conn.Close()
		}
		return err
	})
	err = g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// tell says all, round by round.
func (s *sender) tell(ctx context.Context, over <-chan struct{}) error {
	defer s.stopServing()
	hello, err := json.Marshal(s.src.Hello())
	if err != nil {
		return err
	}
	if err := s.send(ctx, message{kind: msgHello, off: version, body: hello}); err != nil {
		return err
	}
	for round := 0; ; round++ {
		w := &Walk{ctx: ctx, s: s}
		last, err := s.src.Walk(ctx, round, w)
		if err != nil {
			return err
		}
		if err := s.send(ctx, message{kind: msgRound, flag: flag(last)}); err != nil {
			return err
		}
		select {
		case again := <-s.next:
			if again {
				round--
			} else if last {
				return s.conclude(ctx, over)
			}
		case <-over:
			return ErrLost
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *sender) conclude(ctx context.Context, over <-chan struct{}) error {
	position, result := s.src.Result()
	body, err := json.Marshal(result)
	if err != nil {
		return err
	}
	if err := s.send(ctx, message{kind: msgDone, off: int64(position), body: body}); err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return errors.Join(ErrLost, err)
	}
	select {
	case again := <-s.next: // it is durable
		if again {
			return errMalformed
		}
		return nil
	case <-over:
		select {
		case <-s.next:
			return nil
		default:
			return ErrLost
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// listen hears the receiver until it has ended.
func (s *sender) listen(over chan<- struct{}, parted <-chan struct{}) error {
	defer close(over)
	for {
		m, err := s.receive()
		select {
		case <-parted:
			return nil
		default:
		}
		if errors.Is(err, io.EOF) {
			return nil // whether that was meant, tell knows
		}
		if err != nil {
			return err
		}
		switch m.kind {
		case msgWant:
			m.body = append([]byte(nil), m.body...)
			s.note(func() { s.wants = append(s.wants, m) })
		case msgFiner, msgTake:
			m.body = append([]byte(nil), m.body...)
			s.note(func() { s.answers = append(s.answers, m) })
		case msgSettled:
			s.note(func() { s.settled += m.off })
		case msgNext:
			select {
			case s.next <- m.flag == 1:
			default:
				return errMalformed
			}
		case msgAnswer:
			s.note(func() { s.seed = uint64(m.off) })
		default:
			return errMalformed
		}
	}
}

func (s *sender) note(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.changed.Broadcast()
}

// stopServing ends serveAll.
func (s *sender) stopServing() {
	s.note(func() { s.wants = append(s.wants, message{}) })
}

// serveAll sends what is wanted, in the order in which that is said; what finishes a file that is being sent, before anything else.
func (s *sender) serveAll(ctx context.Context) error {
	for {
		m, err := s.take(ctx, &s.answers, &s.wants)
		if err != nil || m.kind == 0 {
			return err
		}
		if err := s.serve(ctx, m); err != nil {
			return err
		}
	}
}

// take waits for a message in one of several lists, and takes it from the first that has one.
func (s *sender) take(ctx context.Context, lists ...*[]message) (message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil {
		for _, list := range lists {
			if len(*list) > 0 {
				m := (*list)[0]
				(*list)[0] = message{}
				*list = (*list)[1:]
				return m, nil
			}
		}
		s.changed.Wait()
	}
	return message{}, context.Cause(ctx)
}

// serve deals with what the receiver has said of a file.
func (s *sender) serve(ctx context.Context, m message) (err error) {
	switch o := s.open[m.id]; m.kind {
	case msgFiner:
		err = s.serveFine(ctx, m, o)
	case msgTake:
		err = s.serveTaken(ctx, m, o)
	default:
		err = s.serveWanted(ctx, m, o)
	}
	if err != nil {
		err = fmt.Errorf("send %q: %w", m.name, err)
	}
	return err
}

// serveWanted sends what is wanted of a file.
func (s *sender) serveWanted(ctx context.Context, m message, o *sending) error {
	if o == nil {
		var err error
		if o, err = s.openFile(m.name); err != nil {
			return err
		}
		s.open[m.id] = o
	}
	if !o.gone {
		if err := s.compare(ctx, m, o); err != nil {
			return err
		}
	}
	if len(o.differ) > 0 {
		if err := s.send(ctx, message{kind: msgDiffer, id: m.id, body: o.differ}); err != nil {
			return err
		}
		o.differ = nil
		o.owed++
	}
	if err := s.sendOffers(ctx, m.id, o); err != nil {
		return err
	}
	switch {
	case m.flag == wantMore:
		return s.send(ctx, message{kind: msgPart, id: m.id})
	case o.owed > 0:
		o.ending = true
		return nil
	}
	return s.end(ctx, m.id, o)
}

// endServed ends a file of which nothing is owed any more.
func (s *sender) endServed(ctx context.Context, id uint64, o *sending) error {
	if !o.ending || o.owed > 0 {
		return nil
	}
	return s.end(ctx, id, o)
}

// serveFine sends those pieces of blocks that differ.
func (s *sender) serveFine(ctx context.Context, m message, o *sending) error {
	if o == nil || o.owed <= len(o.unanswered) {
		return errMalformed
	}
	o.owed--
	p := parser{b: m.body}
	for len(p.b) > 0 && p.err == nil {
		number := p.length()
		if p.err != nil || len(p.b) < finePrints || number > 1<<50 {
			return errMalformed
		}
		prints := p.b[:finePrints]
		p.b = p.b[finePrints:]
		n, err := o.f.ReadAt(s.buf[:block.BlockSize], number*block.BlockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := s.differing(ctx, message{flag: dataFiner, id: m.id, off: number * block.BlockSize}, nil, fine, s.buf[:n], prints); err != nil {
			return err
		}
	}
	if p.err != nil {
		return p.err
	}
	return s.endServed(ctx, m.id, o)
}

func (s *sender) openFile(name string) (*sending, error) {
	f, err := s.src.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &sending{gone: true}, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := s.src.Attr(f)
	if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return &sending{gone: true}, err // something else is there by now: the next capture sees it
	}
	return &sending{f: f, before: a}, nil
}

// end says that all was sent of a file, and what it is.
func (s *sender) end(ctx context.Context, id uint64, o *sending) error {
	delete(s.open, id)
	if o.gone {
		return s.send(ctx, message{kind: msgEnd, id: id, flag: endGone})
	}
	after, err := s.src.Attr(o.f)
	if err = errors.Join(err, o.f.Close()); err != nil {
		return err
	}
	m := message{kind: msgEnd, id: id, attr: &o.before}
	if after.Size != o.before.Size || after.Modified != o.before.Modified || after.Changed != o.before.Changed {
		m.flag = endChanged
	}
	return s.send(ctx, m)
}

// compare sends those blocks of a part of a file that have other fingerprints than the receiver's, and offers chunks of which that has none.
func (s *sender) compare(ctx context.Context, m message, o *sending) error {
	end := m.off + m.size
	if m.flag == wantLast {
		end = max(end, o.before.Size)
	}
	end = min(end, o.before.Size)
	prints := m.body
	if len(prints) == 0 && hole(o.f, m.off, max(end-m.off, 1)) {
		return nil
	}
	for off := m.off; off < end; {
		n, err := o.f.ReadAt(s.buf[:min(maxData, end-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		look := o
		if m.flag == wantProbe {
			look = nil
		}
		if look != nil && n > block.BlockSize && off%chunkSize == 0 && isZero(prints[:min(len(prints), chunkPrints)]) {
			err = s.offer(ctx, m.id, o, off/chunkSize, s.buf[:n])
		} else {
			err = s.differing(ctx, message{id: m.id, off: off}, look, block.BlockSize, s.buf[:n], prints)
		}
		if err != nil {
			return err
		}
		prints = prints[min(len(prints), chunkPrints):]
		if off += int64(n); n < maxData {
			return nil // the end, perhaps sooner than it was
		}
	}
	return nil
}

// differing sends runs of pieces of b that differ, each as a message like first, which is about the begin of b. Those of which something is staged are noted
// in o, to be compared at a finer grain; a nil o notes nothing.
func (s *sender) differing(ctx context.Context, first message, o *sending, grain int, b, prints []byte) error {
	var run message // kind 0: none
	flush := func() error {
		m := run
		run = message{}
		if m.kind == 0 {
			return nil
		}
		return s.send(ctx, m)
	}
	var print [printSize]byte
	for i := 0; i < len(b); i += grain {
		piece := b[i:min(i+grain, len(b))]
		appendPrint(print[:0], piece, s.seed)
		have := zeros[:printSize]
		if k := i / grain * printSize; k+printSize <= len(prints) {
			have = prints[k : k+printSize]
		}
		want := msgData
		switch {
		case string(have) == string(print[:]):
			want = 0
		case string(print[:]) == string(zeros[:printSize]):
			want = msgZero
		case o != nil && string(have) != string(zeros[:printSize]):
			o.differ = binary.AppendUvarint(o.differ, uint64(first.off+int64(i))/block.BlockSize)
			want = 0
		}
		if want != run.kind {
			if err := flush(); err != nil {
				return err
			}
			run = message{kind: want, flag: first.flag, id: first.id, off: first.off + int64(i)}
		}
		switch want {
		case msgData:
			run.body = b[int(run.off-first.off) : i+len(piece)]
		case msgZero:
			run.size += int64(len(piece))
		}
	}
	return flush()
}

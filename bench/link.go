package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is a relay that makes a thin and long link of the loopback device: in each direction, all of its connections together get rate bytes per
// second, and each byte arrives late by delay. A kernel with netem would do the same below TCP; not every one has it. So
// what TCP itself makes of a long way (slow start, lost packets) is not in it.
type link struct {
	listener net.Listener
	to       string // where its connections lead
	rate     float64
	delay    time.Duration
	up, down direction // to the server and from it
}

// direction is one way of a link.
type direction struct {
	mu    sync.Mutex
	free  time.Time    // when the link has sent what was given to it; guarded by mu
	bytes atomic.Int64 // that were given to it
}

const (
	// linkQueue is how much a link takes of one connection before the sender has to wait, in pieces: with what is under way, 512 KiB.
	linkQueue = 64
	linkPiece = 8 << 10
	// linkBurst is how much of its time a link may catch up: 50 kB at 20 Mbit/s.
	linkBurst = 20 * time.Millisecond
)

// newLink begins to relay to an address.
func newLink(to string, rate float64, delay time.Duration) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	x := &link{listener: l, to: to, rate: rate, delay: delay}
	go x.accept()
	return x, nil
}

func (l *link) address() string { return l.listener.Addr().String() }

// close takes no more connections. Those that there are end with their ends.
func (l *link) close() error { return l.listener.Close() }

func (l *link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.to)
		if err != nil {
			near.Close()
			continue
		}
		go l.carry(&l.up, far, near)
		go l.carry(&l.down, near, far)
	}
}

// late is something that arrives later.
type late struct {
	data []byte
	at   time.Time
}

// carry carries one direction of a connection.
func (l *link) carry(d *direction, to, from net.Conn) {
	queue := make(chan late, linkQueue)
	go func() {
		for p := range queue {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
		if c, ok := to.(*net.TCPConn); ok {
			c.CloseWrite()
		}
	}()
	defer close(queue)
	for {
		buf := make([]byte, linkPiece)
		n, err := from.Read(buf)
		if n > 0 {
			sent := l.pass(d, n)
			time.Sleep(time.Until(sent))
			queue <- late{buf[:n], sent.Add(l.delay)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				to.Close()
			}
			return
		}
	}
}

// pass gives n bytes to a direction, and returns when the last of them has left.
func (l *link) pass(d *direction, n int) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytes.Add(int64(n))
	// Whoever woke up late catches up: the rate is that of the link, and not of this machine's clock.
	if least := time.Now().Add(-linkBurst); d.free.Before(least) {
		d.free = least
	}
	d.free = d.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return d.free
}

package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A flush that waits must not hold up the reads behind it, and must not be
// acknowledged before the device did it.
func TestFlushDoesNotBlockReads(t *testing.T) {
	d := newDisk(1 << 20)
	d.gate = make(chan struct{})
	_, _, addr := serve(t, Options{Workers: 2}, &Export{Name: "x", Device: d})
	c := ready(t, addr, "x", false)
	first := c.command(cmdFlush, 0, 0, 0, nil)
	c.command(cmdWrite, flagFUA, 4096, 1, []byte("f"))
	for range 20 {
		c.wantSimple(0, cmdRead, 0, 4096, 1, nil)
		if got := c.recv(1); got[0] != 'f' {
			t.Fatal("a write that waits for its flush is not visible")
		}
	}
	// A third has to wait for a worker, and everything behind it; then all is answered.
	c.command(cmdFlush, 0, 77, 0, nil)
	c.command(cmdRead, 0, 0, 0, nil)
	close(d.gate)
	seen := map[uint64]bool{}
	for range 4 {
		h := c.recv(simpleHeader)
		if be.Uint32(h[4:]) != 0 {
			t.Fatalf("errno %d", be.Uint32(h[4:]))
		}
		seen[be.Uint64(h[8:])] = true
	}
	if len(seen) != 4 || !seen[first] {
		t.Fatalf("replies %v", seen)
	}
}

// Reads that are not in memory are answered out of order, those that are at once.
func TestMissesGoToWorkers(t *testing.T) {
	d := newDisk(8 << 20)
	want := fill(8<<20, 3)
	d.WriteAt(want, 0)
	d.missing = func(off int64) bool { return off/4096%3 == 0 }
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: tryDisk{d}})
	c := ready(t, addr, "x", true)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	type rd struct{ off, n int }
	open := map[uint64]rd{}
	var batch []byte
	for i := range uint64(400) {
		r := rd{rng.IntN(7 << 20), 1 + rng.IntN(20000)}
		if i%40 == 0 {
			r.n = 100000 + rng.IntN(900000)
		}
		open[i] = r
		batch = append(batch, pack(uint32(magicRequest), uint16(0), uint16(cmdRead), i, uint64(r.off), uint32(r.n))...)
	}
	go c.Write(batch)
	for len(open) > 0 {
		k := c.chunk()
		r, ok := open[k.cookie]
		if !ok || k.typ != chunkOffsetData {
			t.Fatalf("chunk type %d of request %d", k.typ, k.cookie)
		}
		off := int(be.Uint64(k.data))
		if !bytes.Equal(k.data[8:], want[off:off+len(k.data)-8]) || off < r.off || off+len(k.data)-8 > r.off+r.n {
			t.Fatalf("wrong data of %+v", r)
		}
		if k.flags&chunkDone != 0 {
			delete(open, k.cookie)
		}
	}
}

// A client that vanishes in the middle of a write must leave nothing behind:
// no acknowledgement, no part of that write, no hold on the export.
func TestClientVanishes(t *testing.T) {
	d := newDisk(8 << 20)
	var idle, released atomic.Int32
	e := &Export{Name: "x", Device: d, Idle: func() { idle.Add(1) }, Release: func() { released.Add(1) }}
	_, table, addr := serve(t, Options{}, e)
	for i, n := range []uint32{4096, 4 << 20} {
		c := ready(t, addr, "x", false)
		if got := table.Users("x"); got != 1 {
			t.Fatalf("%d users", got)
		}
		c.command(cmdWrite, 0, 0, n, bytes.Repeat([]byte{1}, int(n)-1))
		c.Close()
		eventually(t, "export is idle", func() bool { return table.Users("x") == 0 && idle.Load() == int32(i+1) })
	}
	if !bytes.Equal(d.b, make([]byte, len(d.b))) {
		t.Fatal("part of a write that never arrived is on the disk")
	}
	c := ready(t, addr, "x", false)
	if err := table.Remove("x"); err != nil {
		t.Fatal(err)
	}
	c.wantSimple(0, cmdFlush, 0, 0, 0, nil) // goes on
	greeted(t, addr).wantOption(optGo, infoData("x"), repErrUnknown)
	if released.Load() != 0 {
		t.Fatal("released in use")
	}
	c.Close()
	eventually(t, "export is released", func() bool { return released.Load() == 1 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestHandshakeTimeout(t *testing.T) {
	_, _, addr := serve(t, Options{HandshakeTimeout: 150 * time.Millisecond}, &Export{Name: "x", Device: newDisk(4096)})
	silent, slow := dial(t, addr), greeted(t, addr)
	slow.send(uint64(magicOption), uint32(optList), uint32(4000))
	go func() {
		for range 100 {
			if _, err := slow.Write([]byte{0}); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	slow.wantClosed()
	silent.recv(18)
	silent.wantClosed()
	c := ready(t, addr, "x", false)
	time.Sleep(250 * time.Millisecond) // the limit is on the handshake alone
	c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
}

func TestLimits(t *testing.T) {
	_, _, addr := serve(t, Options{MaxConnections: 2}, &Export{Name: "x", Device: newDisk(4096)})
	a := ready(t, addr, "x", false)
	b := greeted(t, addr)
	dial(t, addr).wantClosed()
	go func() { // an option flood: the server hangs up, whatever is unread
		flood := bytes.Repeat(pack(uint64(magicOption), uint32(99), uint32(0)), 1000)
		for range maxOptions {
			if _, err := b.Write(flood); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		if _, err := b.Read(buf); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("option flood is not cut off")
			}
			break
		}
	}
	b.Close()
	a.wantSimple(0, cmdFlush, 0, 0, 0, nil)
}

func TestShutdown(t *testing.T) {
	d := newDisk(1 << 20)
	d.gate = make(chan struct{})
	table := NewTable()
	table.Add(&Export{Name: "x", Device: d})
	s := NewServer(table, Options{})
	addr := "unix:" + filepath.Join(t.TempDir(), "s")
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	haggling, idle, busy := greeted(t, addr), ready(t, addr, "x", false), ready(t, addr, "x", false)
	busy.command(cmdFlush, 0, 0, 0, nil)
	eventually(t, "flush has begun", func() bool { return d.flushes.Load() == 1 })

	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	haggling.wantClosed()
	idle.wantClosed()
	select {
	case <-done:
		t.Fatal("Shutdown did not wait for the request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	close(d.gate)
	if h := busy.recv(simpleHeader); be.Uint32(h[4:]) != 0 {
		t.Fatalf("reply %x", h)
	}
	busy.wantClosed()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", addr[5:]); err == nil {
		t.Fatal("still listening")
	}
}

func TestShutdownGivesUp(t *testing.T) {
	d := newDisk(1 << 20)
	d.gate = make(chan struct{})
	s, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
	c := ready(t, addr, "x", false)
	c.command(cmdFlush, 0, 0, 0, nil)
	eventually(t, "flush has begun", func() bool { return d.flushes.Load() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	c.wantClosed()
	close(d.gate)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A client that sends without reading replies must stop only itself, and Close
// must get rid of it.
func TestDeafClient(t *testing.T) {
	s, table, addr := serve(t, Options{}, &Export{Name: "x", Device: newDisk(1 << 20)})
	deaf, c := ready(t, addr, "x", false), ready(t, addr, "x", false)
	go func() {
		p := bytes.Repeat(pack(uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(1), uint64(0), uint32(65536)), 1000)
		for {
			if _, err := deaf.Write(p); err != nil {
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
	if n := s.Disconnect("x"); n != 2 {
		t.Fatalf("disconnected %d", n)
	}
	eventually(t, "nobody is left", func() bool { return table.Users("x") == 0 })
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}
	if _, err := Listen("unix:" + path); !errors.Is(err, ErrAddressInUse) {
		t.Fatalf("second listener: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a crash leaves it
	if l, err = ListenAnywhere("unix:" + path); err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	l.Close()
	for what, spoil := range map[string]func(dir, socket string) error{
		"where others write":     func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"in a foreign directory": func(dir, _ string) error { return os.Chown(dir, 65534, 65534) },
		"of another user":        func(_, socket string) error { return os.Chown(socket, 65534, 65534) },
	} {
		if os.Geteuid() != 0 && what != "where others write" {
			continue // it takes root to give files away
		}
		dir := t.TempDir()
		socket := filepath.Join(dir, "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := errors.Join(l.Close(), spoil(dir, socket)); err != nil {
			t.Fatal(err)
		}
		if _, err := ListenAnywhere("unix:" + socket); !errors.Is(err, ErrAddressInUse) {
			t.Errorf("a stale socket %s: %v", what, err)
		}
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("a stale socket %s is gone: %v", what, err)
		}
		if l, err := Listen("unix:" + socket); err != nil { // it was left there, and is replaced in a place of ours
			t.Errorf("a stale socket %s: %v", what, err)
		} else {
			l.Close()
		}
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("over a file: %v", err)
	}
	for _, a := range []string{"", "unix:", "unix:rel", "tcp:", "tcp", "http://x", "/run/s", "tcp:a:b:c:d"} {
		if l, err := Listen(a); !errors.Is(err, ErrBadAddress) {
			t.Errorf("Listen(%q) = %v, %v", a, l, err)
		}
	}
}

func TestTable(t *testing.T) {
	table := NewTable()
	for _, e := range []*Export{{Name: "x"}, {Name: strings.Repeat("x", maxName+1), Device: newDisk(1)},
		{Name: "a\x00b", Device: newDisk(1)}, {Name: "\xff", Device: newDisk(1)}, {Description: "\xff", Device: newDisk(1)}} {
		if err := table.Add(e); !errors.Is(err, ErrBadExport) {
			t.Errorf("Add: %v", err)
		}
	}
	released := 0
	e := &Export{Name: "x", Device: newDisk(1), Release: func() { released++ }}
	if err := errors.Join(table.Add(e)); err != nil {
		t.Fatal(err)
	}
	if err := table.Add(e); !errors.Is(err, ErrExportExists) {
		t.Fatal(err)
	}
	_, first, _ := table.Open("x")
	_, second, _ := table.Open("")
	if err := table.Remove("x"); err != nil || !errors.Is(table.Remove("x"), ErrUnknownExport) {
		t.Fatal(err)
	}
	first()
	if released != 0 {
		t.Fatal("released in use")
	}
	second()
	if released != 1 {
		t.Fatalf("released %d times", released)
	}
}

// The I/O path allocates nothing once it is warm.
func TestNoAllocation(t *testing.T) {
	d := newDisk(1 << 20)
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
	c := ready(t, addr, "x", true)
	rd := pack(uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(1), uint64(0), uint32(4096))
	wr := pack(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(1), uint64(0), uint32(4096), make([]byte, 4096))
	fl := pack(uint32(magicRequest), uint16(0), uint16(cmdFlush), uint64(1), uint64(0), uint32(0))
	buf := make([]byte, dataHeader+4096)
	round := func() {
		for _, x := range []struct {
			p []byte
			n int
		}{{rd, dataHeader + 4096}, {wr, simpleHeader}, {fl, simpleHeader}} {
			c.Write(x.p)
			for k := 0; k < x.n; {
				m, err := c.Read(buf[k:x.n])
				if err != nil {
					t.Fatal(err)
				}
				k += m
			}
		}
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(500, round); n > 0.2 {
		t.Errorf("%.2f allocations per read, write and flush", n)
	}
}

// pipe serves one end of a pipe, feeds it what a fuzzer thought of, and waits
// until the server is through with it.
func pipe(t *testing.T, input []byte, e *Export) {
	table := NewTable()
	table.Add(e)
	s := NewServer(table, Options{MaxConnections: 1, Workers: 2, HandshakeTimeout: 5 * time.Second})
	a, b := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { s.ServeConn(b) })
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			if _, err := a.Read(buf); err != nil {
				return
			}
		}
	})
	a.Write(input)
	a.Close()
	wg.Wait()
	if n := table.Users(e.Name); n != 0 {
		t.Fatalf("%d users left", n)
	}
}

func FuzzHandshake(f *testing.F) {
	opt := func(o uint32, d []byte) []byte { return pack(uint64(magicOption), o, uint32(len(d)), d) }
	for _, o := range [][]byte{opt(optList, nil), opt(optGo, infoData("x", 3)), opt(optExportName, []byte("x")), opt(optAbort, nil), opt(optStartTLS, nil),
		append(opt(optStructuredReply, nil), opt(optSetMetaContext, metaData("x", contextAllocation))...), opt(optListMetaContext, metaData(""))} {
		f.Add(append(pack(uint32(3)), o...))
	}
	f.Fuzz(func(t *testing.T, p []byte) { pipe(t, p, &Export{Name: "x", Device: newDisk(8192)}) })
}

func FuzzTransmission(f *testing.F) {
	for typ := range uint16(9) {
		f.Add(pack(uint32(magicRequest), uint16(0), typ, uint64(1), uint64(4096), uint32(512), make([]byte, 512)))
	}
	hello := pack(uint32(3), uint64(magicOption), uint32(optStructuredReply), uint32(0),
		uint64(magicOption), uint32(optSetMetaContext), uint32(len(metaData("x", contextAllocation))), metaData("x", contextAllocation),
		uint64(magicOption), uint32(optGo), uint32(len(infoData("x"))), infoData("x"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		pipe(t, append(hello[:len(hello):len(hello)], p...), &Export{Name: "x", Device: tryDisk{newDisk(65536)}})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 200<<20 {
			t.Fatalf("%d bytes allocated for %d bytes of input", n, len(p))
		}
	})
}

// No goroutine outlives its connection: synctest fails if one does.
func TestNoGoroutineLeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		table.Add(&Export{Name: "x", Device: newDisk(65536)})
		s := NewServer(table, Options{})
		a, b := net.Pipe()
		go s.ServeConn(b)
		a.Read(make([]byte, 18))
		time.Sleep(time.Minute) // of synctest's clock: the handshake times out
		if _, err := a.Read(make([]byte, 1)); err == nil {
			t.Fatal("half-open connection lives on")
		}
	})
}

// Who has chosen an export and was not answered yet has a connection to it, which ends with the others, and later ones do not begin.
func TestDisconnectInHandshake(t *testing.T) {
	table := NewTable()
	released := make(chan struct{})
	if err := table.Add(&Export{Name: "x", Device: newDisk(8192), Release: func() { close(released) }}); err != nil {
		t.Fatal(err)
	}
	s := NewServer(table, Options{HandshakeTimeout: time.Minute})
	a, b := net.Pipe()
	gone := make(chan struct{})
	go func() { s.ServeConn(b); close(gone) }()
	c := &client{t, a}
	c.recv(18)
	c.send(uint32(3))
	c.option(optGo, infoData("x"))
	for table.Users("x") == 0 { // its answer waits for a client that does not read
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
	if err := table.Remove("x"); err != nil {
		t.Fatal(err)
	}
	if n := s.Disconnect("x"); n != 1 {
		t.Errorf("%d connections were dropped", n)
	}
	c.wantClosed()
	<-gone
	<-released
}

// slowExports has Disconnect called while an export is opened.
type slowExports struct {
	*Table
	opened func()
}

func (s slowExports) Open(name string) (*Export, func(), error) {
	e, release, err := s.Table.Open(name)
	s.opened()
	return e, release, err
}

// Who is just choosing an export that ends is told that there is none.
func TestDisconnectWhileOpening(t *testing.T) {
	table := NewTable()
	if err := table.Add(&Export{Name: "x", Device: newDisk(8192)}); err != nil {
		t.Fatal(err)
	}
	var s *Server
	var once sync.Once
	s = NewServer(slowExports{table, func() {
		once.Do(func() {
			if err := table.Remove("x"); err != nil {
				t.Error(err)
			}
			s.Disconnect("x")
		})
	}}, Options{})
	a, b := net.Pipe()
	go s.ServeConn(b)
	c := &client{t, a}
	c.recv(18)
	c.send(uint32(3))
	c.wantOption(optGo, infoData("x"), repErrUnknown)
	a.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

package nbd

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/block"
)

// disk is a device in memory that counts, blocks and fails where it is told to.
type disk struct {
	mu      sync.RWMutex
	b       []byte           // guarded by mu
	used    []bool           // guarded by mu: per block, not a hole
	fail    atomic.Value     // failure: answered by everything
	flushes atomic.Int32     // calls begun
	gate    chan struct{}    // if set, Flush waits for it
	missing func(int64) bool // TryReadAt refuses these offsets
}

type failure struct{ err error }

func newDisk(n int64) *disk {
	return &disk{b: make([]byte, n), used: make([]bool, (n+block.BlockSize-1)/block.BlockSize)}
}

func (d *disk) failWith(err error) { d.fail.Store(failure{err}) }

func (d *disk) err() error {
	f, _ := d.fail.Load().(failure)
	return f.err
}

func (d *disk) Size() int64 { return int64(len(d.b)) }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.err(); err != nil {
		return 0, err
	}
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.err(); err != nil {
		return 0, err
	}
	for i := off / block.BlockSize; i*block.BlockSize < off+int64(len(p)); i++ {
		d.used[i] = true
	}
	return copy(d.b[off:], p), nil
}

func (d *disk) Flush() error {
	d.flushes.Add(1)
	if d.gate != nil {
		<-d.gate
	}
	return d.err()
}

func (d *disk) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.err(); err != nil {
		return err
	}
	clear(d.b[off : off+n])
	for i := (off + block.BlockSize - 1) / block.BlockSize; (i+1)*block.BlockSize <= off+n; i++ {
		d.used[i] = false
	}
	return nil
}

func (d *disk) Extents(off, n int64, fn func(block.Extent) bool) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for n > 0 {
		k := min(n, block.BlockSize-off%block.BlockSize)
		if !fn(block.Extent{Off: off, Len: k, Hole: !d.used[off/block.BlockSize]}) {
			return nil
		}
		off, n = off+k, n-k
	}
	return nil
}

// tryDisk is a disk that has only some of its bytes in memory.
type tryDisk struct{ *disk }

func (d tryDisk) TryReadAt(p []byte, off int64, decode bool) (bool, error) {
	if d.missing != nil && d.missing(off) {
		return false, nil
	}
	_, err := d.ReadAt(p, off)
	return true, err
}

// serve starts a server of the exports on a unix socket and returns its address.
func serve(t testing.TB, opt Options, exports ...*Export) (*Server, *Table, string) {
	t.Helper()
	table := NewTable()
	for _, e := range exports {
		if err := table.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	s := NewServer(table, opt)
	addr := "unix:" + filepath.Join(t.TempDir(), "s")
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != ErrServerClosed {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s, table, addr
}

// client speaks the protocol byte by byte.
type client struct {
	t testing.TB
	net.Conn
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("unix", addr[len("unix:"):])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(15 * time.Second))
	return &client{t, nc}
}

// greeted returns a client past the greeting.
func greeted(t testing.TB, addr string) *client {
	t.Helper()
	c := dial(t, addr)
	g := c.recv(18)
	if be.Uint64(g) != magicServer || be.Uint64(g[8:]) != magicOption || be.Uint16(g[16:]) != 3 {
		t.Fatalf("greeting %x", g)
	}
	c.send(uint32(3))
	return c
}

// ready returns a client in the transmission phase.
func ready(t testing.TB, addr, name string, structured bool) *client {
	t.Helper()
	c := greeted(t, addr)
	if structured {
		c.wantOption(optStructuredReply, nil, repAck)
		c.wantOption(optSetMetaContext, metaData(name, contextAllocation), repMetaContext, repAck)
	}
	c.wantOption(optGo, infoData(name), repInfo, repInfo, repAck)
	return c
}

// send writes fields: integers big-endian, bytes and strings as they are.
func (c *client) send(fields ...any) {
	c.t.Helper()
	if _, err := c.Write(pack(fields...)); err != nil {
		c.t.Fatal(err)
	}
}

func pack(fields ...any) []byte {
	var p []byte
	for _, f := range fields {
		switch f := f.(type) {
		case uint16:
			p = be.AppendUint16(p, f)
		case uint32:
			p = be.AppendUint32(p, f)
		case uint64:
			p = be.AppendUint64(p, f)
		case []byte:
			p = append(p, f...)
		case string:
			p = append(p, f...)
		default:
			panic(f)
		}
	}
	return p
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	for k := 0; k < n; {
		m, err := c.Read(p[k:])
		if err != nil {
			c.t.Fatalf("receive %d of %d bytes: %v", k, n, err)
		}
		k += m
	}
	return p
}

// wantClosed fails unless the server hung up.
func (c *client) wantClosed() {
	c.t.Helper()
	var p [64]byte
	for {
		if n, err := c.Read(p[:]); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				c.t.Fatal("server did not hang up")
			}
			return
		} else if n > 0 {
			c.t.Fatalf("server sent %x, want it to hang up", p[:n])
		}
	}
}

func (c *client) option(opt uint32, data []byte) {
	c.t.Helper()
	c.send(uint64(magicOption), opt, uint32(len(data)), data)
}

func (c *client) optionReply(opt uint32) (typ uint32, data []byte) {
	c.t.Helper()
	h := c.recv(20)
	if be.Uint64(h) != magicReply || be.Uint32(h[8:]) != opt {
		c.t.Fatalf("reply to option %d: %x", opt, h)
	}
	return be.Uint32(h[12:]), c.recv(int(be.Uint32(h[16:])))
}

// wantOption sends an option and checks the types of its replies; it returns their data.
func (c *client) wantOption(opt uint32, data []byte, types ...uint32) (replies [][]byte) {
	c.t.Helper()
	c.option(opt, data)
	for i, want := range types {
		typ, d := c.optionReply(opt)
		if typ != want {
			c.t.Fatalf("option %d: reply %d is %#x %q, want %#x", opt, i, typ, d, want)
		}
		replies = append(replies, d)
	}
	return replies
}

func infoData(name string, kinds ...uint16) []byte {
	p := pack(uint32(len(name)), name, uint16(len(kinds)))
	for _, k := range kinds {
		p = be.AppendUint16(p, k)
	}
	return p
}

func metaData(name string, queries ...string) []byte {
	p := pack(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		p = append(p, pack(uint32(len(q)), q)...)
	}
	return p
}

// command sends a request; its cookie is made of its type and offset.
func (c *client) command(typ, flags uint16, off uint64, n uint32, payload []byte) uint64 {
	c.t.Helper()
	cookie := uint64(typ)<<48 ^ off ^ 0xc00c1e
	c.send(uint32(magicRequest), flags, typ, cookie, off, n, payload)
	return cookie
}

// wantSimple sends a request and checks the errno of its simple reply.
func (c *client) wantSimple(errno uint32, typ, flags uint16, off uint64, n uint32, payload []byte) {
	c.t.Helper()
	cookie := c.command(typ, flags, off, n, payload)
	h := c.recv(simpleHeader)
	if be.Uint32(h) != magicSimple || be.Uint64(h[8:]) != cookie {
		c.t.Fatalf("command %d: reply %x", typ, h)
	}
	if got := be.Uint32(h[4:]); got != errno {
		c.t.Fatalf("command %d flags %#x offset %d length %d: errno %d, want %d", typ, flags, off, n, got, errno)
	}
}

type chunk struct {
	flags, typ uint16
	cookie     uint64
	data       []byte
}

func (c *client) chunk() chunk {
	c.t.Helper()
	h := c.recv(structuredHeader)
	if be.Uint32(h) != magicStructured {
		c.t.Fatalf("chunk %x", h)
	}
	return chunk{be.Uint16(h[4:]), be.Uint16(h[6:]), be.Uint64(h[8:]), c.recv(int(be.Uint32(h[16:])))}
}

// chunks reads all chunks of one reply.
func (c *client) chunks(cookie uint64) (l []chunk) {
	c.t.Helper()
	for {
		k := c.chunk()
		if k.cookie != cookie {
			c.t.Fatalf("cookie %x, want %x", k.cookie, cookie)
		}
		l = append(l, k)
		if k.flags&chunkDone != 0 {
			return l
		}
	}
}

// wantError sends a request whose reply is structured and checks its errno.
func (c *client) wantError(errno uint32, typ, flags uint16, off uint64, n uint32) {
	c.t.Helper()
	l := c.chunks(c.command(typ, flags, off, n, nil))
	k := l[len(l)-1]
	if k.typ&(1<<15) == 0 || be.Uint32(k.data) != errno {
		c.t.Fatalf("command %d offset %d length %d: %+v, want errno %d", typ, off, n, k, errno)
	}
}

// wantData reads a range by structured replies and compares it; it returns the chunks' types.
func (c *client) wantData(flags uint16, off uint64, want []byte) (types []uint16) {
	c.t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want))
	for _, k := range c.chunks(c.command(cmdRead, flags, off, uint32(len(want)), nil)) {
		types = append(types, k.typ)
		switch k.typ {
		case chunkNone:
			continue
		case chunkOffsetData:
			copy(got[be.Uint64(k.data)-off:], k.data[8:])
		case chunkOffsetHole:
			o := be.Uint64(k.data) - off
			clear(got[o : o+uint64(be.Uint32(k.data[8:]))])
		default:
			c.t.Fatalf("read: chunk %+v", k)
		}
	}
	if !bytes.Equal(got, want) {
		c.t.Fatalf("read of %d bytes at %d: wrong data", len(want), off)
	}
	return types
}

// tool skips the test if a program is missing, but in CI fails it.
func tool(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil && os.Getenv("CI") == "" {
			t.Skipf("needs %s", n)
		} else if err != nil {
			t.Fatalf("needs %s", n)
		}
	}
}

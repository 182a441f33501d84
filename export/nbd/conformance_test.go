package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tidemark/block"
)

func TestHandshake(t *testing.T) {
	ro := &Export{Name: "ro", Description: "cannot be written", Device: newDisk(8192), ReadOnly: true}
	_, table, addr := serve(t, Options{}, &Export{Name: "rw", Device: newDisk(1 << 20)}, ro)
	for _, tt := range []struct {
		name string
		do   func(c *client)
	}{
		{"abort", func(c *client) { c.wantOption(optAbort, nil, repAck); c.wantClosed() }},
		{"list", func(c *client) {
			r := c.wantOption(optList, nil, repServer, repServer, repAck)
			if want := pack(uint32(2), "rocannot be written"); !bytes.Equal(r[0], want) {
				t.Fatalf("%q", r[0])
			}
		}},
		{"list with data", func(c *client) { c.wantOption(optList, []byte{1}, repErrInvalid) }},
		{"unknown option", func(c *client) {
			c.wantOption(4711, []byte("x"), repErrUnsup)
			c.wantOption(0, nil, repErrUnsup)
			c.wantOption(math.MaxUint32, nil, repErrUnsup)
		}},
		{"extended headers", func(c *client) { c.wantOption(11, nil, repErrUnsup) }},
		{"info", func(c *client) {
			r := c.wantOption(optInfo, infoData("ro", infoName, infoDescription, infoBlockSize), repInfo, repInfo, repInfo, repInfo, repAck)
			if be.Uint16(r[0]) != infoExport || be.Uint64(r[0][2:]) != 8192 || be.Uint16(r[0][10:])&canReadOnly == 0 {
				t.Fatalf("export: %x", r[0])
			}
			if !bytes.Equal(r[1], pack(uint16(infoBlockSize), uint32(1), uint32(4096), uint32(32<<20))) {
				t.Fatalf("block size: %x", r[1])
			}
			if string(r[2]) != "\x00\x01ro" || string(r[3]) != "\x00\x02cannot be written" {
				t.Fatalf("%q %q", r[2], r[3])
			}
		}},
		{"info then go", func(c *client) {
			c.wantOption(optInfo, infoData("ro"), repInfo, repInfo, repAck)
			c.wantOption(optGo, infoData("rw"), repInfo, repInfo, repAck)
			c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
		}},
		{"go to nowhere", func(c *client) {
			c.wantOption(optGo, infoData("none"), repErrUnknown)
			c.wantOption(optGo, infoData(""), repErrUnknown) // two exports: no default
			c.wantOption(optGo, infoData("rw"), repInfo, repInfo, repAck)
		}},
		{"malformed go", func(c *client) {
			for _, d := range [][]byte{nil, {0}, pack(uint32(0)), pack(uint32(math.MaxUint32), "rw", uint16(0)),
				pack(uint32(2), "rw", uint16(1)), append(infoData("rw"), 0), infoData(strings.Repeat("n", maxName+1))} {
				c.wantOption(optGo, d, repErrInvalid)
			}
		}},
		{"long options", func(c *client) {
			c.wantOption(optInfo, make([]byte, maxOption+1), repErrTooBig)
			c.wantOption(optList, make([]byte, maxOptionDrain), repErrTooBig)
			c.send(uint64(magicOption), uint32(optList), uint32(math.MaxUint32))
			c.wantClosed()
		}},
		{"export name", func(c *client) {
			c.option(optExportName, []byte("rw"))
			if p := c.recv(10); be.Uint64(p) != 1<<20 || be.Uint16(p[8:])&canDF != 0 {
				t.Fatalf("%x", p)
			}
			c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
		}},
		{"export name unknown", func(c *client) { c.option(optExportName, []byte("none")); c.wantClosed() }},
		{"export name too long", func(c *client) {
			c.send(uint64(magicOption), uint32(optExportName), uint32(math.MaxUint32))
			c.wantClosed()
		}},
		{"bad magic", func(c *client) { c.send(uint64(magicOption+1), uint32(optList), uint32(0)); c.wantClosed() }},
		{"structured with data", func(c *client) {
			c.wantOption(optStructuredReply, []byte{0}, repErrInvalid)
			c.wantOption(optStructuredReply, nil, repAck)
		}},
		{"meta context before structured", func(c *client) {
			c.wantOption(optSetMetaContext, metaData("rw", contextAllocation), repErrInvalid)
			c.wantOption(optListMetaContext, metaData("rw"), repErrInvalid)
		}},
		{"meta contexts", func(c *client) {
			c.wantOption(optStructuredReply, nil, repAck)
			c.wantOption(optListMetaContext, metaData("rw"), repMetaContext, repAck)
			c.wantOption(optListMetaContext, metaData("rw", "base:"), repMetaContext, repAck)
			c.wantOption(optListMetaContext, metaData("rw", "qemu:"), repAck)
			c.wantOption(optSetMetaContext, metaData("rw", "base:", "x-y:z"), repAck)
			c.wantOption(optSetMetaContext, metaData("none", contextAllocation), repErrUnknown)
			for _, d := range [][]byte{nil, pack(uint32(0), uint32(math.MaxUint32)), append(metaData("rw", "a"), 1), pack(uint32(0), uint32(1), uint32(9), "short")} {
				c.wantOption(optSetMetaContext, d, repErrInvalid)
			}
			r := c.wantOption(optSetMetaContext, metaData("rw", contextAllocation), repMetaContext, repAck)
			if string(r[0][4:]) != contextAllocation || be.Uint32(r[0]) != contextAllocationID {
				t.Fatalf("%q", r[0])
			}
		}},
		{"meta context of another export", func(c *client) {
			c.wantOption(optStructuredReply, nil, repAck)
			c.wantOption(optSetMetaContext, metaData("ro", contextAllocation), repMetaContext, repAck)
			c.wantOption(optGo, infoData("rw"), repInfo, repInfo, repAck)
			c.wantError(errInval, cmdBlockStatus, 0, 0, 4096)
		}},
		{"no TLS", func(c *client) { c.wantOption(optStartTLS, nil, repErrPolicy) }},
		{"starttls with data", func(c *client) { c.wantOption(optStartTLS, []byte{1}, repErrInvalid) }},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.do(greeted(t, addr)) })
	}
	t.Run("unknown client flags", func(t *testing.T) { c := dial(t, addr); c.recv(18); c.send(uint32(7)); c.wantClosed() })
	t.Run("zeroes", func(t *testing.T) {
		c := dial(t, addr)
		c.recv(18)
		c.send(uint32(flagFixedNewstyle))
		c.option(optExportName, []byte("rw"))
		if p := c.recv(134); !bytes.Equal(p[10:], make([]byte, 124)) {
			t.Fatalf("%x", p)
		}
		c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
	})
	t.Run("default export", func(t *testing.T) {
		if err := table.Remove("ro"); err != nil {
			t.Fatal(err)
		}
		greeted(t, addr).wantOption(optGo, infoData(""), repInfo, repInfo, repAck)
	})
}

// fill returns n bytes that tell where they are.
func fill(n, seed int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8*7 + i + seed)
	}
	return p
}

func TestCommands(t *testing.T) {
	const size = 40 << 20
	for _, structured := range []bool{false, true} {
		t.Run(fmt.Sprintf("structured=%v", structured), func(t *testing.T) {
			d := newDisk(size)
			_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
			c := ready(t, addr, "x", structured)
			read := func(flags uint16, off uint64, want []byte) {
				t.Helper()
				if structured {
					c.wantData(flags, off, want)
					return
				}
				c.wantSimple(0, cmdRead, 0, off, uint32(len(want)), nil)
				if got := c.recv(len(want)); !bytes.Equal(got, want) {
					t.Fatalf("read of %d bytes at %d: wrong data", len(want), off)
				}
			}
			for i, n := range []int{1, 511, 4096, 65536, inlinePayload, inlinePayload + 1, chunkMax, chunkMax + 1, 1<<20 + 3, maxPayload} {
				p := fill(n, i)
				c.wantSimple(0, cmdWrite, 0, uint64(i*7), uint32(n), p)
				read(0, uint64(i*7), p)
				if structured {
					if types := c.wantData(flagDF, uint64(i*7), p); len(types) != 1 {
						t.Fatalf("DF: %d chunks", len(types))
					}
				}
			}
			c.wantSimple(0, cmdWrite, 0, size, 0, nil)
			read(0, size, nil)
			n := d.flushes.Load()
			c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
			c.wantSimple(0, cmdWrite, flagFUA, 0, 3, []byte("fua"))
			c.wantSimple(0, cmdTrim, flagFUA, 4096, 4096, nil)
			c.wantSimple(0, cmdWriteZeroes, flagFUA|flagNoHole, 8192, 4096, nil)
			if got := d.flushes.Load() - n; got != 4 {
				t.Fatalf("%d flushes, want 4", got)
			}
			read(0, 0, []byte("fua"))
			read(0, 4096, make([]byte, 8192))
			c.wantSimple(0, cmdWriteZeroes, 0, 0, size, nil)
			c.wantSimple(0, cmdWriteZeroes, flagFastZero, 0, 4096, nil)
			c.wantSimple(errNotSup, cmdWriteZeroes, flagFastZero|flagNoHole, 0, 4096, nil)
			c.wantSimple(0, cmdWriteZeroes, flagNoHole, 1, 1<<20, nil)
			c.wantSimple(0, cmdTrim, 0, 0, 0, nil)
			read(0, 0, make([]byte, 1<<20))
			c.command(cmdDisc, 0, 0, 0, nil)
			c.wantClosed()
		})
	}
}

func TestRefusals(t *testing.T) {
	d := newDisk(1 << 20)
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d}, &Export{Name: "ro", Device: d, ReadOnly: true})
	c := ready(t, addr, "x", false)
	for _, r := range []struct {
		errno      uint32
		typ, flags uint16
		off        uint64
		n          uint32
	}{
		{errInval, cmdRead, 0, 1 << 20, 1}, {errInval, cmdRead, 0, 1<<20 - 1, 2}, {errInval, cmdRead, 0, math.MaxUint64, 1},
		{errInval, cmdRead, 0, 1 << 63, 4096}, {errInval, cmdRead, 0, math.MaxUint64 - 4095, 4096}, {errInval, cmdRead, 0, 0, math.MaxUint32},
		{errInval, cmdRead, 0, 0, maxPayload + 1}, {errInval, cmdRead, flagDF, 0, 1}, {errInval, cmdRead, flagNoHole, 0, 1},
		{errInval, cmdRead, 1 << 15, 0, 1}, {errInval, cmdRead, flagReqOne, 0, 1},
		{errInval, cmdTrim, 0, 1 << 20, 1}, {errInval, cmdTrim, 0, 0, math.MaxUint32}, {errInval, cmdTrim, flagFastZero, 0, 1},
		{errNoSpace, cmdWriteZeroes, 0, 1<<20 - 1, 2}, {errNoSpace, cmdWriteZeroes, 0, 1 << 63, 0}, {errInval, cmdWriteZeroes, flagDF, 0, 1},
		{errInval, cmdFlush, flagNoHole, 0, 0}, {errInval, cmdBlockStatus, 0, 0, 1}, {errInval, cmdCache, 0, 0, 1},
		{errInval, 8, 0, 0, 1}, {errInval, 9, 0, 0, 0}, {errInval, math.MaxUint16, math.MaxUint16, math.MaxUint64, math.MaxUint32},
	} {
		c.wantSimple(r.errno, r.typ, r.flags, r.off, r.n, nil)
	}
	c.wantSimple(errNoSpace, cmdWrite, 0, 1<<20-1, 2, []byte("ab"))
	c.wantSimple(errNoSpace, cmdWrite, 0, 1<<63, 5000, make([]byte, 5000))
	c.wantSimple(errInval, cmdWrite, flagNoHole, 0, 1, []byte("a"))
	c.wantSimple(errInval, cmdWrite, 0, 0, maxPayload+1, make([]byte, maxPayload+1))
	c.wantSimple(0, cmdRead, 0, 0, 1, nil) // and the connection goes on
	if c.recv(1)[0] != 0 {
		t.Fatal("a refused write changed the disk")
	}
	c.command(cmdWrite, 0, 0, math.MaxUint32, nil)
	c.wantClosed()

	c = ready(t, addr, "ro", true)
	c.wantSimple(errPerm, cmdWrite, 0, 0, 1, []byte("a"))
	c.wantSimple(errPerm, cmdTrim, 0, 0, 1, nil)
	c.wantSimple(errPerm, cmdWriteZeroes, 0, 0, 1, nil)
	c.wantSimple(0, cmdFlush, 0, 0, 0, nil)
	c.wantError(errInval, cmdRead, 0, 1<<20, 1)
	c.wantError(errInval, cmdBlockStatus, 0, 0, 0)
	c.wantError(errInval, cmdBlockStatus, 0, 1<<20, 1)
	c.wantData(0, 5, make([]byte, 99))
	c.send(uint32(magicRequest+1), make([]byte, 24))
	c.wantClosed()
}

func TestSparse(t *testing.T) {
	d := newDisk(4 << 20)
	want := make([]byte, 4<<20)
	for _, off := range []int{0, 1 << 20, 1<<20 + 8192, 3 << 20} {
		copy(want[off:], fill(4096, off))
		d.WriteAt(want[off:off+4096], int64(off))
	}
	_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d})
	c := ready(t, addr, "x", true)
	types := c.wantData(0, 0, want)
	if !slices.Contains(types, chunkOffsetHole) || len(types) != 8 {
		t.Fatalf("chunks %v", types)
	}
	if types := c.wantData(flagDF, 0, want); len(types) != 1 {
		t.Fatalf("DF: chunks %v", types)
	}
	c.wantData(0, 1<<20+4097, want[1<<20+4097:2<<20])

	status := func(flags uint16, off uint64, n uint32) (l []uint32) {
		t.Helper()
		k := c.chunks(c.command(cmdBlockStatus, flags, off, n, nil))
		if len(k) != 1 || k[0].typ != chunkBlockStatus || be.Uint32(k[0].data) != contextAllocationID {
			t.Fatalf("%+v", k)
		}
		for p := k[0].data[4:]; len(p) > 0; p = p[4:] {
			l = append(l, be.Uint32(p))
		}
		return l
	}
	if got := status(0, 0, 2<<20); !slices.Equal(got, []uint32{4096, 0, 1<<20 - 4096, 3, 4096, 0, 4096, 3, 4096, 0, 1<<20 - 12288, 3}) {
		t.Fatalf("%v", got)
	}
	if got := status(flagReqOne, 100, 1<<20); !slices.Equal(got, []uint32{3996, 0}) {
		t.Fatalf("%v", got)
	}
	for off := int64(0); off < 4<<20; off += 8192 { // in shreds: read as data
		d.WriteAt([]byte{1}, off)
		want[off] = 1
	}
	if types := c.wantData(0, 0, want); slices.Contains(types, chunkOffsetHole) {
		t.Fatalf("chunks %v", types)
	}
}

func TestDeviceErrors(t *testing.T) {
	for _, tt := range []struct {
		err   error
		errno uint32
	}{
		{errors.New("segment 12 is corrupt"), errIO}, {syscall.EIO, errIO}, {fmt.Errorf("append: %w", syscall.ENOSPC), errNoSpace},
		{fmt.Errorf("journal: %w", block.ErrNoSpace), errNoSpace}, {block.ErrReadOnly, errPerm}, {block.ErrBounds, errInval}, {syscall.ENOMEM, errNoMem},
	} {
		d := newDisk(2 << 20)
		d.WriteAt(fill(2<<20, 0), 0)
		_, _, addr := serve(t, Options{}, &Export{Name: "x", Device: d}, &Export{Name: "try", Device: tryDisk{d}})
		for _, name := range []string{"x", "try"} {
			c, plain := ready(t, addr, name, true), ready(t, addr, name, false)
			d.failWith(tt.err)
			c.wantSimple(tt.errno, cmdWrite, 0, 0, 4, []byte("lost"))
			c.wantSimple(tt.errno, cmdWrite, flagFUA, 0, 4, []byte("lost"))
			c.wantSimple(tt.errno, cmdFlush, 0, 0, 0, nil)
			c.wantSimple(tt.errno, cmdTrim, 0, 0, 4096, nil)
			c.wantSimple(tt.errno, cmdWriteZeroes, 0, 0, 4096, nil)
			c.wantSimple(tt.errno, cmdWriteZeroes, flagNoHole|flagFUA, 0, 1<<20, nil)
			for _, n := range []uint32{1, 4096, 65536, 1 << 20} {
				c.wantError(tt.errno, cmdRead, 0, 0, n)
				c.wantError(tt.errno, cmdRead, flagDF, 0, n)
				plain.wantSimple(tt.errno, cmdRead, 0, 0, n, nil)
			}
			d.failWith(nil)
			c.wantData(0, 0, fill(2<<20, 0)[:4])
		}
	}
}

func TestURI(t *testing.T) {
	for _, tt := range []struct {
		addr, export string
		tls          bool
		want         string
	}{
		{"unix:/run/a b.sock", "orders@-5m", false, "nbd+unix:///orders%40-5m?socket=/run/a%20b.sock"},
		{"unix:/s", "", true, "nbds+unix:///?socket=/s"},
		{"tcp:db1:10810", "a/b?c", false, "nbd://db1:10810/a/b%3Fc"},
		{"tcp:db1", "x", true, "nbds://db1:10809/x"},
		{"tcp:[::1]:1", "é", false, "nbd://[::1]:1/%C3%A9"},
		{"tcp::10809", "x", false, "nbd://localhost:10809/x"},
		{"tcp:0.0.0.0:1", "x", false, "nbd://localhost:1/x"},
		{"unix:relative", "x", false, ""}, {"udp:x:1", "x", false, ""}, {"", "", false, ""}, {"tcp:", "", false, ""},
	} {
		if got := URI(tt.addr, tt.export, tt.tls); got != tt.want {
			t.Errorf("URI(%q, %q) = %q, want %q", tt.addr, tt.export, got, tt.want)
		}
	}
}

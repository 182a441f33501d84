package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"tidemark"
)

// counting is a guest: the boot sector of a disk, which counts for ever. It writes each number to a slot of its own (4 KiB from
// 2 MiB on, 1024 of them in turn), and when that is done, to 1 MiB.
var counting = []byte{
	0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax
	0xbc, 0x00, 0x7c, // mov sp,0x7c00
	0x66, 0xff, 0x06, 0x00, 0x7e, // count: inc dword [0x7e00]
	0x66, 0xa1, 0x00, 0x7e, // mov eax,[0x7e00]
	0x66, 0x25, 0xff, 0x03, 0x00, 0x00, // and eax,1023
	0x66, 0xc1, 0xe0, 0x03, // shl eax,3
	0x66, 0x05, 0x00, 0x10, 0x00, 0x00, // add eax,4096
	0xe8, 0x0b, 0x00, // call write
	0x66, 0xb8, 0x00, 0x08, 0x00, 0x00, // mov eax,2048
	0xe8, 0x02, 0x00, // call write
	0xeb, 0xd9, // jmp count
	0x66, 0xa3, 0x4a, 0x7c, // write: mov [0x7c4a],eax
	0xbe, 0x42, 0x7c, // mov si,0x7c42
	0xb8, 0x00, 0x43, // mov ax,0x4300
	0xb2, 0x80, // mov dl,0x80
	0xcd, 0x13, // int 0x13
	0xc3, 0x00, // ret
	0x10, 0x00, 0x08, 0x00, 0x00, 0x7e, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, // 8 sectors of 0x7e00
}

// Where counting writes.
const (
	countAt = 1 << 20
	slotsAt = 2 << 20
	slots   = 1024
)

// counter is a whole machine whose guest counts.
type counter struct {
	t     *testing.T
	image string
	qmp   string
	q     *Monitor // for the test
}

func newCounter(t *testing.T) *counter {
	need(t, "qemu-system-x86_64")
	dir := t.TempDir()
	c := &counter{t: t, image: filepath.Join(dir, "disk"), qmp: filepath.Join(dir, "qmp.sock")}
	data := make([]byte, diskSize)
	copy(data, counting)
	data[510], data[511] = 0x55, 0xaa
	if err := os.WriteFile(c.image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.sock")
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-display", "none", "-nodefaults",
		"-drive", "if=none,id=vda,format=raw,file="+c.image, "-device", "virtio-blk-pci,drive=vda,bootindex=0",
		"-qmp", "unix:"+c.qmp+",server=on,wait=off", "-qmp", "unix:"+other+",server=on,wait=off")
	cmd.Stderr = t.Output() // it complains of each server that goes
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	eventually(t, "the machine starts", func() bool { return answers(other) })
	var err error
	if c.q, err = Dial(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.q.Close() })
	c.goesOn()
	return c
}

// do has the machine do something that the test wants.
func (c *counter) do(command string) {
	c.t.Helper()
	if err := c.q.Run(c.t.Context(), command, nil, nil); err != nil {
		c.t.Fatal(err)
	}
}

// disk is what the disk holds.
func (c *counter) disk() []byte {
	data, err := os.ReadFile(c.image)
	if err != nil {
		c.t.Fatal(err)
	}
	return data
}

// goesOn waits until the guest has counted further.
func (c *counter) goesOn() {
	c.t.Helper()
	begun, from := time.Now(), numberIn(c.disk())
	eventually(c.t, "the guest counts", func() bool { return numberIn(c.disk()) > from+20 })
	if d := time.Since(begun); d > 20*time.Second {
		c.t.Errorf("the guest stood still for %v", d)
	}
}

func numberIn(disk []byte) uint32 { return binary.LittleEndian.Uint32(disk[countAt:]) }

// order returns what is wrong with a disk, if it was never like that.
func order(disk []byte) error {
	n := numberIn(disk)
	if got := binary.LittleEndian.Uint32(disk[slotsAt+4096*int(n%slots):]); n != 0 && got != n {
		return fmt.Errorf("%d was written, and its slot has %d", n, got)
	}
	return nil
}

// TestGuestGoesOn ends mirrors of a machine whose guest writes all the time, in all the ways in which they end. The machine must
// survive that, and the guest go on, and what is kept must be true.
func TestGuestGoesOn(t *testing.T) {
	rng, w, c := seeded(t), newWorld(t, 1), newCounter(t)
	m := &machine{t: t, qmp: c.qmp, disks: 1}
	with := func(m *Mirror) {
		m.NBD, m.Disks, m.still = "", []string{"vda"}, nil
		m.turnEvery, m.turnAfter = 20*time.Millisecond, 50*time.Millisecond
	}
	mirror, stop := w.follow(m, with)
	rounds := 9
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 100
	}
	for round := range rounds {
		ready(t, mirror)
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
		gaps := len(w.line.Gaps())
		switch round % 3 {
		case 0:
			stop()
			w.restart(false)
		case 1:
			w.kill(stop, true)
		case 2:
			w.HangUp()
			eventually(t, "the gap is noted", func() bool { return len(w.line.Gaps()) > gaps })
		}
		c.goesOn()
		if round%3 != 2 {
			mirror, stop = w.follow(m, with)
		}
		w.mended(gaps + 1)
	}
	ready(t, mirror)
	c.do("stop")
	head, _ := w.line.Head()
	if got, err := w.at(head); err != nil || !bytes.Equal(got, c.disk()) {
		t.Errorf("the timeline is not what the disk of the paused machine is: %v", err)
	}
	c.do("cont")
	c.goesOn()
	offered := 0
	for range 300 {
		got, err := w.at(tidemark.Position(1 + rng.Int64N(int64(head))))
		if err != nil {
			continue // in a gap
		}
		if offered++; order(got) != nil {
			t.Fatal(order(got))
		}
	}
	t.Logf("the guest counted to %d; %d of 300 positions are offered, and true", numberIn(c.disk()), offered)
	if offered < 10 {
		t.Error("too few positions are offered")
	}
	stop()
	c.goesOn()
}

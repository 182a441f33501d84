package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"tidemark/image"
	"tidemark/timeline"
)

// content fills p with rows like those of a database: a header that hardly
// differs from row to row, and a filler of hexadecimal digits that only entropy
// coding can shrink. It compresses about two to one; no two blocks are equal.
func content(rng *rand.Rand, p []byte) {
	const digits, header, row = "0123456789abcdef", 24, 96
	for i := range p {
		p[i] = 0
	}
	for at := 0; at < len(p); at += row {
		r := p[at:min(at+row, len(p))]
		if len(r) >= header {
			binary.LittleEndian.PutUint32(r[0:], 0x5c0f02)
			binary.LittleEndian.PutUint64(r[8:], rng.Uint64()&0xffffff)
		}
		for i := header; i < min(header+64, len(r)); i++ {
			r[i] = digits[rng.Uint32()&15]
		}
	}
}

// rawDisk writes the file that all sides' disks begin as.
func rawDisk(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(p)) {
		content(rng, p)
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	return f.Close()
}

// ours makes a data directory with the raw disk's content as the timeline
// "golden", packed into an image, and then calls more for whatever else it
// should hold.
func ours(ctx context.Context, dir, raw string, more func(w *world, golden *timeline.Timeline) error) error {
	return oursAs(ctx, dir, raw, image.Options{}, more)
}

// oursAs is ours with other options of the image store.
func oursAs(ctx context.Context, dir, raw string, o image.Options, more func(w *world, golden *timeline.Timeline) error) error {
	w, err := openWorldAs(dir, o)
	if err != nil {
		return err
	}
	golden, err := fill(ctx, w, raw)
	if err == nil && more != nil {
		err = more(w, golden)
	}
	if e := w.close(); err == nil {
		err = e
	}
	return err
}

// fill imports a raw disk as the timeline "golden".
func fill(ctx context.Context, w *world, raw string) (*timeline.Timeline, error) {
	f, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	golden, err := w.set.Create(ctx, "golden", []timeline.DiskSpec{{Name: "disk", Size: info.Size(), Chunk: image.DefaultChunk}}, nil)
	if err != nil {
		return nil, err
	}
	golden.SetBulk(true)
	disk := golden.Disks()[0]
	p := make([]byte, 1<<20)
	for off := int64(0); off < info.Size(); off += int64(len(p)) {
		if _, err := f.ReadAt(p, off); err != nil {
			return nil, err
		}
		if _, err := disk.WriteAt(p, off); err != nil {
			return nil, err
		}
	}
	if _, err := golden.Bookmark(timeline.Mark{Name: "full"}); err != nil {
		return nil, err
	}
	return golden, golden.Fold(ctx)
}

// branch makes a clone of a timeline as it is now.
func branch(ctx context.Context, w *world, of *timeline.Timeline, name string) (*timeline.Timeline, error) {
	pos, _ := of.Head()
	return w.set.Get(of.ID()).Branch(ctx, name, pos, nil, nil)
}

// serveOurs starts our server on a data directory.
func (e *env) serveOurs(ctx context.Context, dir, socket string, cache int64, name string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := []string{self, "serve", "-data", dir, "-socket", socket, "-cache", strconv.FormatInt(cache, 10)}
	profile := ""
	if e.profile {
		if profile, err = filepath.Abs(filepath.Join(e.out, name+".pprof")); err != nil {
			return nil, err
		}
		argv = append(argv, "-profile", profile)
	}
	s, err := start(ctx, tide, socket, "clone", argv...)
	if err == nil {
		s.profile = profile
	}
	return s, err
}

// qemuNBD starts qemu-nbd, as it comes, on an image file.
func qemuNBD(ctx context.Context, side, socket, format, file string) (*server, error) {
	return start(ctx, side, socket, "", "qemu-nbd", "-k", socket, "-t", "--shared=16", "-f", format, file)
}

// nbdkitFile starts nbdkit's file plugin on a raw file.
func nbdkitFile(ctx context.Context, socket, file string) (*server, error) {
	return start(ctx, "nbdkit file", socket, "", "nbdkit", "-f", "-U", socket, "file", file)
}

// overlay makes an empty qcow2 file over another file.
func overlay(ctx context.Context, file, base, format string) error {
	os.Remove(file)
	_, err := run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, file)
	return err
}

// fullQcow2 converts a raw disk into a qcow2 file in which all is allocated:
// the state after all copying on write is done.
func fullQcow2(ctx context.Context, file, raw string) error {
	_, err := run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, file)
	return err
}

// stopAll ends servers; they are on the way out, so that errors only add a line.
func stopAll(servers ...*server) {
	for _, s := range servers {
		if s == nil {
			continue
		}
		if err := s.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

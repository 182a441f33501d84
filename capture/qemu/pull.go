package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tidemark"
	"tidemark/block"
)

// pullSize is how much is read at once, in bytes.
const pullSize = 1 << 20

// readable has the machine serve a disk, with a bitmap if one is named, and connects to it. The
// disk is read below the mirror: what the guest writes meanwhile comes by the other way.
func (r *run) readable(ctx context.Context, d *disk, bitmap string) (*source, error) {
	if err := r.startServer(ctx); err != nil {
		return nil, err
	}
	name := r.prefix + "-" + randomName() // a former one may still be on its way out
	spec := map[string]any{"type": "nbd", "id": name, "node-name": d.node.Node, "name": name, "writable": false}
	if bitmap != "" {
		spec["bitmaps"] = []string{bitmap}
	}
	if err := r.qmp.Run(ctx, "block-export-add", spec, nil); err != nil {
		return nil, err
	}
	s, err := openSource(ctx, r.m.readSocket(), name, bitmap)
	if err == nil && s.size != d.size {
		err = errors.Join(fmt.Errorf("the machine's disk %s has %d bytes now, and had %d", d.node.ID(), s.size, d.size), s.Close())
	}
	return s, err
}

// readSocket is where the machine lets us read its disk.
func (m *Mirror) readSocket() string {
	if m.NBD != "" {
		return m.NBD
	}
	return filepath.Join(m.Dir, readName)
}

// startServer has the machine serve NBD. There can be one NBD server in a QEMU; ours is told by its socket.
func (r *run) startServer(ctx context.Context) error {
	path := r.m.readSocket()
	if r.m.NBD != "" || answers(path) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	addr := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": path}}}
	err := r.qmp.Run(ctx, "nbd-server-start", addr, nil)
	var refused *CommandError
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "already running") {
		return tidemark.Errorf(tidemark.Conflict, "the machine's disk cannot be read: its NBD server is in use").
			WithHint("end that (nbd-server-stop), or say where it listens: -o nbd=PATH of its unix socket")
	}
	return err
}

// stopServer ends what readable began, in this run or another.
func (r *run) stopServer(ctx context.Context) error {
	path := r.m.readSocket()
	if r.m.NBD == "" && answers(path) {
		err := r.qmp.Run(ctx, "nbd-server-stop", nil, nil)
		if e := os.Remove(path); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return err
	}
	var exports []export
	if err := r.qmp.Run(ctx, "query-block-exports", nil, &exports); err != nil {
		return err
	}
	for _, e := range exports {
		if !strings.HasPrefix(e.ID, r.prefix+"-") {
			continue
		}
		err := r.qmp.Run(ctx, "block-export-del", map[string]any{"id": e.ID, "mode": "hard"}, nil)
		var refused *CommandError
		if err != nil && !errors.As(err, &refused) { // one that ends already is refused
			return err
		}
	}
	return nil
}

// pullLacking makes the timeline equal to the machine's disks, where it may differ: what a bitmap says, or everything.
func (r *run) pullLacking(ctx context.Context) error {
	p := puller{run: r}
	defer p.close()
	for _, d := range r.disks {
		bitmap := ""
		if d.known {
			bitmap = r.unionName()
		}
		s, err := p.add(ctx, d, bitmap)
		if err != nil {
			return err
		}
		if bitmap != "" {
			if err := p.wantMarked(ctx, s, bitmap); err != nil {
				return err
			}
		}
		if !d.known {
			s.list = []extent{{0, d.size}}
		}
	}
	return p.pull(ctx)
}

// pullDoubts reads again what the guest has discarded.
func (r *run) pullDoubts(ctx context.Context) error {
	p := puller{run: r}
	defer p.close()
	for _, d := range r.disks {
		list := d.doubts.take(d.size)
		if len(list) == 0 {
			continue
		}
		s, err := p.add(ctx, d, "")
		if err != nil {
			return err
		}
		for _, e := range list {
			s.want(e)
		}
	}
	return p.pull(ctx)
}

// puller compares ranges of the machine's disks with the timeline's, and stores what differs.
type puller struct {
	*run
	sides        []*side
	theirs, ours []byte
	done, total  int64
}

// side is a disk of the machine that is read.
type side struct {
	*disk
	source *source
	list   []extent
}

// want adds a range to what is compared.
func (s *side) want(e extent) { s.list = append(s.list, e) }

func (p *puller) add(ctx context.Context, d *disk, bitmap string) (*side, error) {
	src, err := p.readable(ctx, d, bitmap)
	if err != nil {
		return nil, err
	}
	s := &side{disk: d, source: src}
	p.sides = append(p.sides, s)
	return s, nil
}

func (p *puller) close() {
	for _, s := range p.sides {
		s.pulling.Store(nil)
		_ = s.source.Close()
	}
}

func (p *puller) pull(ctx context.Context) error {
	p.theirs, p.ours = make([]byte, pullSize), make([]byte, pullSize)
	for _, s := range p.sides {
		for _, e := range s.list {
			p.total += e.n
		}
	}
	for _, s := range p.sides {
		for _, e := range s.list {
			if err := p.pullRange(ctx, s, e); err != nil {
				return err
			}
		}
		s.pulling.Store(nil)
	}
	return nil
}

func (p *puller) pullRange(ctx context.Context, s *side, e extent) error {
	var parts []extent
	err := s.source.extents(contextZeros, stateZero, e.off, e.n, func(x extent, zero bool) error {
		// Holes on both sides need no look. What the guest writes there from now on comes by itself.
		if zero && hole(s.port.disk, x) {
			p.done += x.n
			return nil
		}
		parts = append(parts, x)
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range parts {
		for end := x.off + x.n; x.off < end; x.off += x.n {
			if err := errors.Join(ctx.Err(), p.in.why()); err != nil {
				return err
			}
			x.n = min(end-x.off, pullSize-x.off%pullSize)
			if err := p.compare(s, x); err != nil {
				return err
			}
			p.done += x.n
			p.progress(p.done, p.total)
		}
	}
	return nil
}

// hole reports whether a range of a disk is known to be nothing but a hole.
func hole(d block.Reader, e extent) bool {
	all := true
	err := block.Extents(d, e.off, e.n, func(x block.Extent) bool {
		all = all && x.Hole
		return all
	})
	return err == nil && all
}

// compare reads a range of both sides, and stores what differs, by blocks.
func (p *puller) compare(s *side, x extent) error {
	w := s.open(x.off, x.n)
	theirs, ours := p.theirs[:x.n], p.ours[:x.n]
	if err := s.source.read(theirs, x.off); err != nil {
		return err
	}
	if _, err := s.port.disk.ReadAt(ours, x.off); err != nil {
		return err
	}
	for from := int64(0); from < x.n; {
		same := equalBlock(theirs, ours, from)
		to := nextBlock(x, from)
		for to < x.n && equalBlock(theirs, ours, to) == same {
			to = nextBlock(x, to)
		}
		if !same {
			if err := s.put(w, extent{x.off + from, to - from}, theirs[from:to]); err != nil {
				return err
			}
			s.stored += to - from
		}
		from = to
	}
	return nil
}

// nextBlock is where the block behind the one at from begins, within x.
func nextBlock(x extent, from int64) int64 {
	return min(x.n, (x.off+from)/block.BlockSize*block.BlockSize+block.BlockSize-x.off)
}

func equalBlock(a, b []byte, from int64) bool {
	to := min(int64(len(a)), from+block.BlockSize)
	return bytes.Equal(a[from:to], b[from:to])
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"tidemark/mount"
	"tidemark/timeline"
)

const qsd = "qemu-storage-daemon FUSE + loop"

// attach is what our attacher's process does; see mount.RunAttacher.
func attach() error { return mount.RunAttacher(context.Background(), nil) }

// attached is a block device of this host and how to be rid of it.
type attached struct {
	side   string
	device string
	cpu    func() time.Duration // of the processes behind it
	detach func() error
}

// attachOurs attaches an export of our server.
func (e *env) attachOurs(ctx context.Context, s *server, export, state string) (*attached, error) {
	a, err := e.launcher.Attach(ctx, mount.Config{Name: export, StateDir: state, Socket: s.socket, Export: export})
	if err != nil {
		return nil, err
	}
	return &attached{side: tide, device: a.Device(),
		cpu:    func() time.Duration { return s.cpu() + cpuOf(a.PID()) },
		detach: func() error { return a.Detach(context.Background(), true) }}, nil
}

// attachQSD shows a disk file through qemu-storage-daemon's FUSE export and a
// loop device.
func attachQSD(ctx context.Context, file, format, at string) (*attached, error) {
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		return nil, err
	}
	argv := []string{"--blockdev", "driver=file,node-name=f,filename=" + file}
	node := "f"
	if format != "raw" {
		argv, node = append(argv, "--blockdev", "driver="+format+",node-name=q,file=f"), "q"
	}
	argv = append(argv, "--export", "type=fuse,id=e,node-name="+node+",mountpoint="+at+",writable=on")
	cmd := exec.Command("qemu-storage-daemon", argv...)
	var said strings.Builder
	cmd.Stderr = &said
	ended, err := startTied(cmd)
	if err != nil {
		return nil, err
	}
	end := func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		exec.Command("umount", "-l", at).Run() // it may be unmounted already
		return nil
	}
	for i := 0; !mounted(at); i++ {
		if i > 2000 || ctx.Err() != nil {
			end()
			return nil, fmt.Errorf("qemu-storage-daemon did not mount %s: %s", at, said.String())
		}
		time.Sleep(3 * time.Millisecond)
	}
	out, err := run(ctx, "losetup", "-f", "--show", "--direct-io=on", at)
	if err != nil {
		end()
		return nil, err
	}
	device := strings.TrimSpace(out)
	return &attached{side: qsd, device: device, cpu: func() time.Duration { return cpuOf(cmd.Process.Pid) },
		detach: func() error {
			if _, err := run(context.Background(), "losetup", "-d", device); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond) // the kernel lets go of the file a little later
			return end()
		}}, nil
}

// mounted reports whether something is mounted on a path.
func mounted(path string) bool {
	b, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return false
	}
	return strings.Contains(string(b), " "+path+" ")
}

// benchFUSE compares block devices on a kernel without NBD.
func benchFUSE(ctx context.Context, e *env, r *Result) error {
	size := e.size(1<<30, 128<<20)
	raw, data, qcow := e.fast+"/raw", e.fast+"/data", e.fast+"/full.qcow2"
	if err := rawDisk(raw, size); err != nil {
		return err
	}
	if err := fullQcow2(ctx, qcow, raw); err != nil {
		return err
	}
	err := ours(ctx, data, raw, func(w *world, golden *timeline.Timeline) error {
		_, err := branch(ctx, w, golden, "clone")
		return err
	})
	if err != nil {
		return err
	}
	t, err := e.serveOurs(ctx, data, e.fast+"/tidemark.sock", size*5/4, r.Name)
	if err != nil {
		return err
	}
	defer stopAll(t)
	a, err := e.attachOurs(ctx, t, "clone", filepath.Join(e.fast, "attached"))
	if err != nil {
		return err
	}
	defer a.detach()
	q, err := attachQSD(ctx, qcow, "qcow2", e.fast+"/qsd")
	if err != nil {
		return err
	}
	err = e.roundsFUSE(ctx, r, t, size, a, q)
	if err = errors.Join(err, q.detach()); err != nil { // it holds the disk that new clones are based on
		return err
	}
	rowsFUSE(r)
	return e.timeAttach(ctx, r, t, qcow)
}

// timeAttach times how long it takes until the block device of a new clone is
// there, and until it is gone again.
func (e *env) timeAttach(ctx context.Context, r *Result, t *server, qcow string) error {
	sides := map[string]func(round int) (*attached, error){
		tide: func(round int) (*attached, error) {
			return e.attachOurs(ctx, t, fmt.Sprintf("golden@new%d", round), filepath.Join(e.fast, "attached"))
		},
		qsd: func(round int) (*attached, error) {
			file := fmt.Sprintf("%s/new%d.qcow2", e.fast, round)
			if err := overlay(ctx, file, qcow, "qcow2"); err != nil {
				return nil, err
			}
			return attachQSD(ctx, file, "qcow2", fmt.Sprintf("%s/new%d", e.fast, round))
		},
	}
	for round := range e.rounds {
		for side, up := range sides {
			begin := time.Now()
			a, err := up(round)
			if err != nil {
				return err
			}
			ready := time.Since(begin)
			begin = time.Now()
			if err := a.detach(); err != nil {
				return err
			}
			r.add(Sample{side, "attach", round, map[string]float64{"ms": float64(ready.Microseconds()) / 1e3, "detach_ms": float64(time.Since(begin).Microseconds()) / 1e3}})
		}
	}
	r.row("new clone until its block device is there ÷ "+qsd, r.ratio(tide, qsd, "attach", "ms"), "x", Bound{}, Bound{}, "%s against %s ms; gone again after %s ms",
		number(r.median(tide, "attach", "ms")), number(r.median(qsd, "attach", "ms")), number(r.median(tide, "attach", "detach_ms")))
	return nil
}

func (e *env) roundsFUSE(ctx context.Context, r *Result, t *server, size int64, sides ...*attached) error {
	for _, s := range sides { // warm
		if _, err := driveDevice(ctx, s, pattern{rw: "read", bs: "1M", depth: 4, bytes: size}, size); err != nil {
			return err
		}
	}
	// All reads come first: what was written is in other chunks than before, which no cache has.
	reads := e.patternsNBD(size)[:4]
	writes := []pattern{
		{rw: "write", bs: "1M", depth: 4, bytes: size / 2},
		{rw: "randwrite", bs: "4k", depth: 16, bytes: size / 16, seed: 5}}
	for _, patterns := range [][]pattern{reads, writes} {
		for round := range e.rounds {
			if err := e.roundFUSE(ctx, r, t, size, round, patterns, sides); err != nil {
				return err
			}
			slices.Reverse(sides)
		}
	}
	return nil
}

// roundFUSE measures each pattern on each side once.
func (e *env) roundFUSE(ctx context.Context, r *Result, t *server, size int64, round int, patterns []pattern, sides []*attached) error {
	for _, p := range patterns {
		for _, s := range sides {
			v, err := driveDevice(ctx, s, p, size)
			if err != nil {
				return err
			}
			r.add(Sample{s.side, p.String(), round, v})
			if s.side == tide && strings.Contains(p.rw, "write") {
				t.settle()
			}
		}
	}
	return nil
}

// driveDevice runs fio on a block device, past the page cache.
func driveDevice(ctx context.Context, a *attached, p pattern, size int64) (map[string]float64, error) {
	before := a.cpu()
	v, err := drive(ctx, p, size, "--ioengine=libaio", "--direct=1", "--filename="+a.device)
	if err != nil {
		return nil, err
	}
	v["cpu_us"] = float64((a.cpu() - before).Microseconds()) / max(1, v["ios"])
	return v, nil
}

func rowsFUSE(r *Result) {
	for _, x := range []struct {
		p, unit   string
		must, aim Bound
	}{
		{"randread 4k QD16", "iops", atLeast(1), atLeast(2)},
		{"randread 4k QD1", "iops", Bound{}, Bound{}},
		{"randread 4k QD64", "iops", Bound{}, Bound{}},
		{"randwrite 4k QD16", "iops", Bound{}, Bound{}},
		{"read 1M QD4", "MB/s", Bound{}, Bound{}},
		{write, "MB/s", Bound{}, Bound{}},
	} {
		format := thousands
		if x.unit == "MB/s" {
			format = number
		}
		r.row(x.p+" ÷ "+qsd, r.ratio(tide, qsd, x.p, x.unit), "x", x.must, x.aim, "%s against %s %s; CPU of server and attacher %s against %s µs",
			format(r.median(tide, x.p, x.unit)), format(r.median(qsd, x.p, x.unit)), x.unit, number(r.median(tide, x.p, "cpu_us")), number(r.median(qsd, x.p, "cpu_us")))
	}
}

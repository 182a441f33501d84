package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/capture/tap"
	"tidemark/client"
	"tidemark/export/nbd"
	"tidemark/internal/process"
	"tidemark/mount"
)

const (
	native  = "the disk itself"
	through = "FUSE + loop, not tapped"
	tapped  = "tapped"
	gone    = "tapped, server gone"
)

// productionSides are all sides, in the order in which they are listed.
var productionSides = []string{native, through, tapped, gone, unmirrored, mirrored}

// productionSize is the size in bytes of each side's disk.
const productionSize = 2 << 30

// production is a disk with an XFS and a PostgreSQL on it, as one side has it.
type production struct {
	side, image, device string
	undo                func() error
	server              *product // of tapped ones
}

// product is a server of the command itself.
type product struct {
	binary, data string
	args         []string // more than the data directory
	cmd          *exec.Cmd
	done         chan error
	*client.Client
}

// benchCDP runs pgbench on disks with and without a tap in front of them.
func benchCDP(ctx context.Context, e *env, r *Result) error {
	return e.producing(ctx, productionSides, func(p *product, images map[string]string, sockets string) error {
		list, end, err := e.productions(ctx, images, e.plainProductions, func(ctx context.Context, images map[string]string) ([]*production, error) {
			return e.tappedProductions(ctx, p, images, sockets)
		}, e.qemuProductions)
		defer end()
		if err != nil {
			return err
		}
		if err := e.roundsCDP(ctx, r, p, list, sockets); err != nil {
			return err
		}
		rowsCDP(r)
		rowsMirror(r)
		r.note("PostgreSQL 15 on XFS on a file on a disk; pgbench with 8 clients. As documented, not measured here: Azure Site Recovery makes a crash-consistent point every 5 minutes, Zerto one every few seconds (5 at best). Here each write that is journaled is one; there are none while the server is away for longer than the queue lasts, until what was written meanwhile is sent.")
		return nil
	})
}

// producing starts a server, and makes a disk image with a database for each side.
func (e *env) producing(ctx context.Context, sides []string, fn func(p *product, images map[string]string, sockets string) error) error {
	p, err := e.product(ctx, e.disk+"/data")
	if err != nil {
		return err
	}
	sockets, images, err := e.productionImages(ctx, sides)
	if err != nil {
		return err
	}
	if err := p.start(); err != nil {
		return err
	}
	defer p.kill()
	return fn(p, images, sockets)
}

// productions shows the disks of all sides, until end is called, which is to be also after an error.
func (e *env) productions(ctx context.Context, images map[string]string, show ...func(context.Context, map[string]string) ([]*production, error)) (list []*production, end func(), err error) {
	for _, fn := range show {
		if err == nil {
			var more []*production
			more, err = fn(ctx, images)
			list = append(list, more...)
		}
	}
	shown := slices.Clone(list) // what is measured is turned round
	return list, func() {
		for _, x := range shown {
			if x.undo != nil {
				x.undo()
			}
		}
	}, err
}

// productionImages makes a disk image with an XFS and a database for each side.
func (e *env) productionImages(ctx context.Context, sides []string) (sockets string, images map[string]string, err error) {
	root := e.disk + "/src"
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", nil, err
	}
	scale := 20
	if e.quick {
		scale = 3
	}
	c, err := newCluster(ctx, root, scale)
	if err != nil {
		return "", nil, err
	}
	if err := errors.Join(c.stop(stopFast), c.configure("max_wal_size=1GB", "min_wal_size=512MB")); err != nil {
		return "", nil, err
	}
	first := e.disk + "/first.img"
	if err := sparseFile(first, productionSize); err != nil {
		return "", nil, err
	}
	at := e.disk + "/first"
	for _, argv := range [][]string{{"mkfs.xfs", "-q", first}, {"mkdir", at}, {"mount", "-o", "loop", first, at}, {"cp", "-a", root + "/pg", at + "/"}, {"umount", at}} {
		if _, err := run(ctx, argv...); err != nil {
			return "", nil, err
		}
	}
	images = map[string]string{}
	for i, side := range sides {
		images[side] = fmt.Sprintf("%s/side%d.img", e.disk, i)
		// A device has all of its blocks; a file with holes would have the file system below it commit for each new one.
		if _, err := run(ctx, "cp", "--sparse=never", first, images[side]); err != nil {
			return "", nil, err
		}
	}
	return c.sockets, images, nil
}

// plainProductions shows the disks of the sides without a tap.
func (e *env) plainProductions(ctx context.Context, images map[string]string) (list []*production, err error) {
	loop, err := run(ctx, "losetup", "-f", "--show", images[native])
	if err != nil {
		return nil, err
	}
	device := loop[:len(loop)-1]
	list = append(list, &production{side: native, image: images[native], device: device, undo: func() error {
		_, err := run(context.Background(), "losetup", "-d", device)
		return err
	}})
	exe, err := os.Executable()
	if err != nil {
		return list, err
	}
	s, err := start(ctx, through, e.disk+"/raw.sock", "0", exe, "raw", "-file", images[through], "-socket", e.disk+"/raw.sock")
	if err != nil {
		return list, err
	}
	a, err := e.launcher.Attach(ctx, mount.Config{Name: "raw", StateDir: e.disk + "/attached", Socket: s.socket, Export: "0"})
	if err != nil {
		return list, errors.Join(err, s.stop())
	}
	list = append(list, &production{side: through, image: images[through], device: a.Device(), undo: func() error {
		return errors.Join(a.Detach(context.Background(), true), s.stop())
	}})
	return list, nil
}

// tappedProductions protects disks.
func (e *env) tappedProductions(ctx context.Context, p *product, images map[string]string, sockets string) (list []*production, err error) {
	for i, side := range []string{tapped, gone} {
		spec := tidemark.ProtectSpec{Name: fmt.Sprintf("side%d", i), Source: images[side], CDP: true, Options: map[string]string{}}
		if side == tapped {
			spec.Options["postgres"] = "postgres://postgres@/postgres?host=" + sockets + "&port=5499"
		}
		if side == gone {
			spec.Options["queue"], spec.Options["queue_memory"] = "4KiB", "4MiB" // it is soon full
		}
		j, err := p.Protect(ctx, spec)
		a, err := client.Result[tidemark.Application](ctx, p.Client, j, err, nil)
		if err != nil {
			return list, err
		}
		list = append(list, &production{side: side, image: images[side], device: a.Tap.Disks[0].Device, server: p, undo: func() error {
			return p.Unprotect(context.Background(), spec.Name)
		}})
		if err := p.follows(ctx, spec.Name); err != nil {
			return list, err
		}
	}
	return list, nil
}

// serveRaw serves a file as it is, as the process of a tap would, without one.
func serveRaw(args []string) error {
	f := flag.NewFlagSet("raw", flag.ExitOnError)
	file, socket := f.String("file", "", "`path` of the disk"), f.String("socket", "", "unix socket `path`")
	f.Parse(args)
	process.SpareProcessors()
	d, err := tap.OpenPrimary(*file)
	if err != nil {
		return err
	}
	table := nbd.NewTable()
	if err := table.Add(&nbd.Export{Name: "0", Device: d}); err != nil {
		return err
	}
	l, err := nbd.Listen("unix:" + *socket)
	if err != nil {
		return err
	}
	s := nbd.NewServer(table, nbd.Options{})
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() { <-end; s.Close() }()
	if err := s.Serve(l); err != nil && !errors.Is(err, nbd.ErrServerClosed) {
		return err
	}
	return d.Close()
}

// product builds the command, for a server that start starts. The disk's directory is made one that databases can reach.
func (e *env) product(ctx context.Context, data string, args ...string) (*product, error) {
	p := &product{binary: e.disk + "/tidemark", data: data, args: args}
	if _, err := run(ctx, "go", "build", "-o", p.binary, "./cmd/tidemark"); err != nil {
		return nil, err
	}
	return p, os.Chmod(e.disk, 0o755)
}

func (p *product) start() (err error) {
	p.cmd = exec.Command(p.binary, append([]string{"server", "--data", p.data}, p.args...)...)
	p.cmd.Stderr = os.Stderr
	if p.done, err = startTied(p.cmd); err != nil {
		return err
	}
	p.Client = client.New(p.data + "/tidemark.sock")
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err = p.Status(context.Background()); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (p *product) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// tap returns how the tap of an application is.
func (p *product) tap(ctx context.Context, app string) (tidemark.Tap, error) {
	s, err := p.Status(ctx)
	if err != nil {
		return tidemark.Tap{}, err
	}
	for _, a := range s.Applications {
		if a.Name == app && a.Tap != nil {
			return *a.Tap, nil
		}
	}
	return tidemark.Tap{}, fmt.Errorf("%s is not tapped", app)
}

// follows waits until a timeline has all of its disk.
func (p *product) follows(ctx context.Context, app string) error {
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		t, err := p.tap(ctx, app)
		if err == nil && t.State == tidemark.TapFollowing && t.QueuedBytes == 0 {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%s does not follow: %+v, %v", app, t, err)
		}
	}
}

// using mounts a disk, has a database run there, and calls fn.
func (x *production) using(ctx context.Context, sockets string, fn func(c *cluster) error) (err error) {
	at := filepath.Join(filepath.Dir(x.image), "mnt")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := mount.MountFS(x.device, at, "xfs", []string{"noatime"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(at)) }()
	c, err := startPG(at+"/pg", sockets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(c.stop(stopFast), err) }()
	if err := c.ready(ctx); err != nil {
		return err
	}
	return fn(c)
}

func (e *env) loadSpan() string {
	if e.quick {
		return "2"
	}
	return "8"
}

// restEvery is in how many rounds the sides have one turn that nothing must be reached against.
const restEvery = 3

func (e *env) roundsCDP(ctx context.Context, r *Result, p *product, list []*production, sockets string) error {
	for round := -1; round < e.rounds; round++ {
		count := r
		if round < 0 { // the first turn of a database writes each page as a whole, and counts for nothing
			count = new(Result)
		}
		for _, x := range list {
			if round > 0 && round%restEvery != 0 && !slices.Contains([]string{through, tapped, gone}, x.side) {
				continue
			}
			if err := e.turnCDP(ctx, count, p, x, sockets, round); err != nil {
				return fmt.Errorf("%s: %w", x.side, err)
			}
		}
		slices.Reverse(list)
	}
	slices.SortFunc(list, func(a, b *production) int {
		return slices.Index(productionSides, a.side) - slices.Index(productionSides, b.side)
	})
	return nil
}

func (e *env) turnCDP(ctx context.Context, r *Result, p *product, x *production, sockets string, round int) error {
	for _, app := range []string{"side0", "side1"} { // what the turn before left to be folded and packed is none of this one's
		if _, err := p.keeps(ctx, app, 3*time.Second); err != nil {
			return err
		}
	}
	if x.side == gone {
		p.kill()
		defer p.start()
	}
	if x.side == tapped {
		begun := cpuOf(p.cmd.Process.Pid)
		defer func() {
			r.add(Sample{tapped, "served", round, map[string]float64{"s": (cpuOf(p.cmd.Process.Pid) - begun).Seconds()}})
			if _, err := p.keeps(ctx, "side0", 3*time.Second); err == nil {
				r.add(Sample{tapped, "served and folded", round, map[string]float64{"s": (cpuOf(p.cmd.Process.Pid) - begun).Seconds()}})
			}
		}()
	}
	return x.using(ctx, sockets, func(c *cluster) error {
		var lags []float64
		stop := func() {}
		if x.side == tapped {
			t, err := tapOf(p.data, x.image)
			if err != nil {
				return err
			}
			stop = watchLag(ctx, t, &lags)
		}
		tps, err := c.pgbench(ctx, "-c", "8", "-j", "2", "-T", e.loadSpan())
		stop()
		r.add(Sample{x.side, "pgbench", round, map[string]float64{"tps": tps}})
		for _, lag := range lags {
			r.add(Sample{x.side, "lag", round, map[string]float64{"s": lag}})
		}
		return err
	})
}

// watchLag asks a tap all the time how far its timeline is behind. It does not ask the server, which would take a part of
// the processors to look at everything else.
func watchLag(ctx context.Context, x *taps.Tap, lags *[]float64) (stop func()) {
	end := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond): // to ask takes time of the processors, too
			}
			if st, err := x.Status(ctx); err == nil {
				*lags = append(*lags, st.Lag.Seconds())
			}
		}
	})
	return func() { close(end); watching.Wait() }
}

// percentile returns the p-th percentile of a list, which it sorts.
func percentile(list []float64, p float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(float64(len(list))*p/100))]
}

// values returns all values of a sort of sample.
func (r *Result) values(side, what, unit string) (list []float64) {
	for _, s := range r.Samples {
		if v, ok := s.Value[unit]; ok && s.Side == side && s.What == what {
			list = append(list, v)
		}
	}
	return list
}

func rowsCDP(r *Result) {
	tps := func(side string) string { return number(r.median(side, "pgbench", "tps")) }
	served := r.median(tapped, "served", "s")
	r.row("pgbench through the tap ÷ "+through, r.ratio(tapped, through, "pgbench", "tps"), "x", atLeast(0.90), atLeast(0.97),
		"%s against %s transactions/s; the disk itself, without FUSE, %s. A turn of 8 s begins at rest; of the server's time, %s s fall into it, and %s s afterwards, to fold and pack at low priority",
		tps(tapped), tps(through), tps(native), number(served), number(r.median(tapped, "served and folded", "s")-served))
	r.row("the same with the server gone", r.ratio(gone, through, "pgbench", "tps"), "x", atLeast(0.95), atLeast(0.98),
		"%s transactions/s; the queue is full, and regions are noted", tps(gone))
	lags := r.values(tapped, "lag", "s")
	r.row("lag of the timeline behind the disk, p99", percentile(lags, 99), "s", atMost(1), atMost(0.1), "%d looks; p50 %s s", len(lags), number(percentile(lags, 50)))
}

// idle is how much processor time a server takes in a second that has nothing to fold and pack.
const idle = 60 * time.Millisecond

// keeps returns what the server keeps of an application when it follows and has come to rest for a while: history is
// folded and packed in the background, and slowly while others want the processors.
func (p *product) keeps(ctx context.Context, app string, rest time.Duration) (v tidemark.VolumeInfo, err error) {
	if err := p.follows(ctx, app); err != nil {
		return v, err
	}
	last, since, spent := int64(-1), time.Now(), cpuOf(p.cmd.Process.Pid)
	for end := time.Now().Add(3 * time.Minute); time.Since(since) < rest; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			return v, fmt.Errorf("the server does not come to rest with %s", app)
		}
		if v, err = p.Volume(ctx, app); err != nil {
			return v, err
		}
		now := cpuOf(p.cmd.Process.Pid)
		if busy := now-spent > time.Duration(float64(idle)*rest.Seconds()); busy || v.StoredBytes != last {
			last, since, spent = v.StoredBytes, time.Now(), now
		}
	}
	return v, nil
}

// tapOf finds the tap of an image.
func tapOf(data, image string) (*taps.Tap, error) {
	dirs, err := filepath.Glob(data + "/taps/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if x, err := taps.Find(dir); err == nil && x.Config().Primaries[0] == image {
			return x, nil
		}
	}
	return nil, fmt.Errorf("no tap of %s", image)
}

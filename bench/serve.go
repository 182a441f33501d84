package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"tidemark/export/nbd"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/timeline"
)

// world is a server's storage, opened the way the product opens it.
type world struct {
	bucket *object.Dir
	store  *image.Store
	set    *timeline.Set
}

// openWorld opens the storage in a directory. cache is the bytes of decoded
// chunks it may keep, 0 for the product's default, negative for none.
func openWorld(dir string, cache int64) (*world, error) {
	return openWorldAs(dir, image.Options{CacheBytes: cache})
}

// openWorldAs opens the storage with options of the image store that differ
// from the product's.
func openWorldAs(dir string, o image.Options) (*world, error) {
	runtime.GOMAXPROCS(timeline.Processors())
	w := new(world)
	var err error
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for _, d := range []string{dir, dir + "/pool", dir + "/store", dir + "/timelines"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if w.bucket, err = object.OpenDir(vfs.OS, dir+"/pool"); err != nil {
		return nil, err
	}
	o.FS, o.Dir, o.Bucket, o.Logger = vfs.OS, dir+"/store", w.bucket, quiet
	if w.store, err = image.Open(context.Background(), o); err != nil {
		return nil, err
	}
	w.set, err = timeline.Open(context.Background(), w.store, timeline.Options{FS: vfs.OS, Dir: dir + "/timelines", Bucket: w.bucket, Logger: quiet})
	if err != nil {
		return nil, err
	}
	for id, err := range w.set.Damaged() {
		return nil, fmt.Errorf("timeline %s: %w", id, err)
	}
	return w, nil
}

func (w *world) close() error {
	if err := w.set.Close(); err != nil {
		return err
	}
	if err := w.store.Close(); err != nil {
		return err
	}
	return w.bucket.Close()
}

// named returns the timeline of a name.
func (w *world) named(name string) (*timeline.Timeline, error) {
	for _, t := range w.set.List() {
		if t.Name() == name {
			return t, nil
		}
	}
	return nil, fmt.Errorf("no timeline %q", name)
}

// branching makes clones as they are asked for: the export "golden@c1" is a
// branch of the newest state of the timeline golden, made by its first connection.
type branching struct {
	*nbd.Table
	w *world
}

// Open implements nbd.Exports.
func (b branching) Open(name string) (*nbd.Export, func(), error) {
	e, release, err := b.Table.Open(name)
	of, clone, ok := strings.Cut(name, "@")
	if err == nil || !ok {
		return e, release, err
	}
	golden, err := b.w.named(of)
	if err != nil {
		return nil, nil, err
	}
	t, err := branch(context.Background(), b.w, golden, clone)
	if err != nil {
		return nil, nil, err
	}
	if err := b.Table.Add(&nbd.Export{Name: name, Device: t.Disks()[0]}); err != nil {
		return nil, nil, err
	}
	return b.Table.Open(name)
}

// serve is what our server process does: it shows the first disk of every
// timeline of a directory, and clones of them, until it is told to end.
func serve(args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	dir := f.String("data", "", "data `directory`")
	socket := f.String("socket", "", "unix socket `path`")
	cache := f.Int64("cache", 0, "`bytes` of decoded chunks")
	profile := f.String("profile", "", "write a CPU profile of the time between SIGUSR1 and SIGUSR2 to `file`")
	f.Parse(args)
	if *profile != "" {
		profileOnSignal(*profile)
	}
	w, err := openWorld(*dir, *cache)
	if err != nil {
		return err
	}
	table := nbd.NewTable()
	for _, t := range w.set.List() {
		if err := table.Add(&nbd.Export{Name: t.Name(), Device: t.Disks()[0]}); err != nil {
			return err
		}
	}
	l, err := nbd.Listen("unix:" + *socket)
	if err != nil {
		return err
	}
	server := nbd.NewServer(branching{table, w}, nbd.Options{})
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-end
		server.Close()
	}()
	if err := server.Serve(l); err != nil && err != nbd.ErrServerClosed {
		return err
	}
	return w.close()
}

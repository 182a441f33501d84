// Command bench measures Tidemark beside its peers, in one run on one machine.
//
//	go run ./bench                      everything
//	go run ./bench -only nbd,firstwrite some of it
//	go run ./bench -quick               small and short, to see that it works
//	go run ./bench -long -only anypoint histories of 2 and 20 million writes
//	go run ./bench -report FILE         no measuring: print what was measured last
//
// Figures of a shared machine move by tens of percent from one minute to the
// next. So nothing here is judged by itself: each figure is the ratio of ours to
// that of a peer, the two take turns within a round, the order of turns is
// reversed every other round, and the median over the rounds is what counts.
// Beside rates stands the server's CPU time per request, the steadiest figure.
//
// What is measured is listed in table. Each benchmark leaves its samples and
// rows in bench/out/NAME.json; the report is made of these files.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/mount"
)

// benchmark is one entry of the table.
type benchmark struct {
	name  string
	about string
	run   func(ctx context.Context, e *env, r *Result) error
}

// table lists the benchmarks in the order they run and are reported.
var table = []benchmark{
	{"nbd", "a clone served over NBD", benchNBD},
	{"firstwrite", "the first write into a clone", benchFirstWrite},
	{"depth", "clones of clones", benchDepth},
	{"cold", "reads of packed chunks that are in no cache of ours", benchCold},
	{"sparse", "a sparse disk of 1 TiB that holds 1 GiB", benchSparse},
	{"journal", "writers that wait until their record is durable", benchJournal},
	{"increment", "a PostgreSQL captured whole and then by difference", benchIncrement},
	{"fuse", "a clone as a block device of a host whose kernel has no NBD", benchFUSE},
	{"pgclone", "a PostgreSQL on a clone", benchPGClone},
	{"anypoint", "points anywhere in a long history", benchAnyPoint},
	{"cdp", "a PostgreSQL on a tapped disk", benchCDP},
	{"cdpkept", "what is kept of a tapped disk", benchCDPKept},
	{"points", "a list of 100,000 points, and an idle server", benchPoints},
	{"landscape", "fifteen databases of one: five tracks of Dev, Test and QA", benchLandscape},
	{"thinlink", "captures of another host over 20 Mbit/s and 80 ms", benchThinLink},
}

// env is what benchmarks share.
type env struct {
	fast    string // a directory on tmpfs: what software costs
	disk    string // a directory on a disk: what durability costs
	out     string // results
	rounds  int
	quick   bool
	long    bool
	profile bool

	launcher *mount.Launcher
}

// size picks the size in bytes for a full or a quick run.
func (e *env) size(full, quick int64) int64 {
	if e.quick {
		return quick
	}
	return full
}

// span picks how long one sample takes.
func (e *env) span() time.Duration {
	if e.quick {
		return 300 * time.Millisecond
	}
	return time.Second
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		exit(serve(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "attach" {
		exit(attach())
	}
	if len(os.Args) > 1 && os.Args[1] == "raw" {
		exit(serveRaw(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "capture" {
		exit(capture(os.Args[2:]))
	}
	exit(runAll())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runAll() error {
	e := &env{}
	only := flag.String("only", "", "comma-separated names of `benchmarks`; all if empty")
	report := flag.String("report", "", "write the report of the newest results into this Markdown `file`, or - for standard output; measure nothing")
	flag.StringVar(&e.fast, "fast", "/dev/shm", "`directory` on tmpfs for what measures software")
	flag.StringVar(&e.disk, "disk", "/var/tmp", "`directory` on a disk for what measures durability")
	flag.StringVar(&e.out, "out", "bench/out", "`directory` for results")
	flag.IntVar(&e.rounds, "rounds", 5, "rounds; the median of them counts")
	flag.BoolVar(&e.quick, "quick", false, "small disks, short samples, two rounds")
	flag.BoolVar(&e.long, "long", false, "ten times the history for anypoint: most of an hour, and 30 GB of disk")
	flag.BoolVar(&e.profile, "profile", false, "leave a CPU profile of our server beside the results")
	flag.Parse()
	if *report != "" {
		return writeReport(e.out, *report)
	}
	if e.quick {
		e.rounds = min(e.rounds, 2)
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	return e.measure(chosen)
}

// choose returns the benchmarks that are named in a list.
func choose(only string) ([]benchmark, error) {
	if only == "" {
		return table, nil
	}
	var chosen []benchmark
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(table, func(b benchmark) bool { return b.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no benchmark is called %q", name)
		}
		chosen = append(chosen, table[i])
	}
	return chosen, nil
}

// touchMemory uses most of the memory that is free, once. A virtual machine gets its memory from its host
// at the first touch, page by page, and files on tmpfs are then written at a
// sixth of their speed: whoever writes new files would be measured by that, and who rewrites old ones not.
func (e *env) touchMemory() error {
	if e.quick {
		return nil
	}
	f, err := os.CreateTemp(e.fast, "tidemark-bench-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 1<<20)
	for n := freeMemory() * 3 / 4; n > 0; n -= int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			return fmt.Errorf("touch memory: %w", err)
		}
	}
	return nil
}

// freeMemory returns how many bytes of memory hold nothing at all.
func freeMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Freeram) * int64(info.Unit)
}

// measure runs benchmarks, each in directories of its own that are removed
// after it. One that fails does not keep the others from running.
func (e *env) measure(chosen []benchmark) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := os.MkdirAll(e.out, 0o755); err != nil {
		return err
	}
	if err := e.touchMemory(); err != nil {
		return err
	}
	e.launcher = mount.NewLauncher()
	defer e.launcher.Close()
	var failed []string
	for _, b := range chosen {
		if err := e.one(ctx, b); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", b.name, err)
			failed = append(failed, b.name)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := writeReport(e.out, filepath.Join(e.out, "report.md")); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

func (e *env) one(ctx context.Context, b benchmark) error {
	own := *e
	for _, dir := range []*string{&own.fast, &own.disk} {
		d, err := os.MkdirTemp(*dir, "tidemark-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(d)
		*dir = d
	}
	r := newResult(b.name, b.about, &own)
	fmt.Printf("## %s: %s\n", b.name, b.about)
	if err := b.run(ctx, &own, r); err != nil {
		return err
	}
	r.finish()
	fmt.Print(r.markdown())
	return r.save(e.out)
}

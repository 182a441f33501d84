package survive

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
)

// rounds is how often the server is killed at least.
func rounds() int {
	if os.Getenv("TIDEMARK_LONG") != "" {
		return 50
	}
	return 6
}

// seeded returns random numbers that can be had again.
func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TIDEMARK_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// act is something that a server does while it is killed.
type act struct {
	name string
	// begin prepares it and returns the command; what it starts takes about as long as typical.
	begin   func(k *killing, n int) []string
	typical time.Duration
}

var acts = []act{
	{"capture", func(k *killing, n int) []string { return []string{"capture", "orders"} }, 400 * time.Millisecond},
	{"clone", func(k *killing, n int) []string { return []string{"clone", "orders", fmt.Sprintf("cut%d", n)} }, 700 * time.Millisecond},
	{"import", func(k *killing, n int) []string {
		k.change(8 << 20)
		return []string{"volume", "import", "vol", k.source, "--bookmark", fmt.Sprintf("cut%d", n)}
	}, 500 * time.Millisecond},
	{"fold", func(k *killing, n int) []string { return []string{"bookmark", "busy", fmt.Sprintf("b%d", n)} }, 300 * time.Millisecond},
	{"reclaim", func(k *killing, n int) []string {
		k.change(24 << 20)
		k.run("volume", "import", fmt.Sprintf("dead%d", n), k.source)
		k.run("volume", "rm", fmt.Sprintf("dead%d", n))
		return []string{"reclaim"}
	}, 400 * time.Millisecond},
	{"first import", func(k *killing, n int) []string {
		k.change(24 << 20)
		return []string{"volume", "import", fmt.Sprintf("new%d", n), k.source}
	}, 700 * time.Millisecond},
	{"protect", func(k *killing, n int) []string {
		return []string{"protect", k.prod.url(), "--name", fmt.Sprintf("pro%d", n)}
	}, 700 * time.Millisecond},
	{"refresh", func(k *killing, n int) []string { return []string{"refresh", "kept"} }, 1200 * time.Millisecond},
	{"mount", func(k *killing, n int) []string { return []string{"mount", "fs", "--name", fmt.Sprintf("m%d", n)} }, 150 * time.Millisecond},
	{"rewind", func(k *killing, n int) []string {
		k.run("capture", "kept", "--bookmark", fmt.Sprintf("r%d", n))
		conn := ask[[]tidemark.Clone](k.stage, "clones")[0].Connection
		sql(k.t, conn, fmt.Sprintf("CREATE TABLE r%d AS SELECT generate_series(1, 200000)", n))
		return []string{"rewind", fmt.Sprintf("kept@r%d", n)}
	}, 800 * time.Millisecond},
}

// killing is a server that is killed again and again, and what must not be lost.
type killing struct {
	*stage
	prod   *production
	rng    *rand.Rand
	order  []act             // of this run
	source string            // a file that is imported
	sums   map[string]string // checksums of points of volumes, by reference
	roots  map[string]string // images of points, by reference
}

// TestKills kills the server in the middle of what it does, while pgbench runs
// on production and fio writes to a mounted disk, and checks after the restart
// that nothing was lost and nothing is left over.
func TestKills(t *testing.T) {
	need(t, "fio", "mkfs.ext4", program("postgres"), program("pg_amcheck"))
	k := &killing{stage: newStage(t), rng: seeded(t), order: slices.Clone(acts), sums: map[string]string{}, roots: map[string]string{}}
	k.someCatalog(k.rng)
	k.prepare()
	want := k.held()
	for n := range max(rounds(), len(acts)) { // in each of the acts once at least
		if n%len(acts) == 0 {
			k.rng.Shuffle(len(acts), func(i, j int) { k.order[i], k.order[j] = k.order[j], k.order[i] })
		}
		a := k.order[n%len(acts)]
		begun := time.Now()
		k.round(n, a)
		k.settled(want)
		t.Logf("round %d, %s: %.1f s", n, a.name, time.Since(begun).Seconds())
	}
	k.run("clone", "rm", "kept")
	k.run("unmount", "busy")
	k.run("unprotect", "orders")
	k.settled("0 attachers, 0 loop devices")
}

// prepare makes what the rounds use: a database under pgbench, a volume with
// points, a mounted file system, and a clone that is kept.
func (k *killing) prepare() {
	t := k.t
	k.start()
	k.prod = newProduction(t, k.dir)
	k.prod.load()
	k.run("protect", k.prod.url(), "--name", "orders")
	k.note("orders", ask[tidemark.CaptureResult](k.stage, "capture", "orders", "--bookmark", "first").Point)
	k.prod.bench(100)
	k.source = filepath.Join(k.dir, "source")
	if err := os.WriteFile(k.source, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(k.source, 96<<20); err != nil {
		t.Fatal(err)
	}
	k.change(16 << 20)
	k.importVolume("first")
	k.makeBusy()
	k.run("clone", "orders", "kept")
}

// makeBusy mounts an empty ext4 at busy.
func (k *killing) makeBusy() {
	file := filepath.Join(k.dir, "ext4")
	must(k.t, "truncate", "-s", "256M", file)
	must(k.t, "mkfs.ext4", "-q", "-b", "4096", file)
	k.run("volume", "import", "fs", file)
	if err := os.Mkdir(k.busy(), 0o755); err != nil {
		k.t.Fatal(err)
	}
	k.run("mount", "fs", k.busy(), "--name", "busy")
}

func (k *killing) busy() string { return filepath.Join(k.dir, "busy") }

// importVolume imports the source and keeps its checksum.
func (k *killing) importVolume(bookmark string) {
	p := ask[tidemark.CaptureResult](k.stage, "volume", "import", "vol", k.source, "--bookmark", bookmark).Point
	k.sums["vol@"+p.Position.String()] = checksum(k.t, k.source)
	k.note("vol", p)
}

// note keeps the names of a point's images: they are hashes of all bytes.
func (k *killing) note(app string, p tidemark.RecoveryPoint) {
	k.roots[app+"@"+p.Position.String()] = fmt.Sprint(p.Images)
}

// change writes random bytes to the source.
func (k *killing) change(n int) {
	f, err := os.OpenFile(k.source, os.O_WRONLY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for range n / len(buf) {
		for i := 0; i < len(buf); i += 8 {
			v := k.rng.Uint64()
			for j := range 8 {
				buf[i+j] = byte(v >> (8 * j))
			}
		}
		if _, err := f.WriteAt(buf, k.rng.Int64N(96<<20-64<<10)&^4095); err != nil {
			k.t.Fatal(err)
		}
	}
}

// round kills the server during one act and checks everything.
func (k *killing) round(n int, a act) {
	t := k.t
	fio := k.startFio(n)
	args := a.begin(k, n)
	last := k.lastJob()
	cmd := k.command(args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(k.rng.Int64N(int64(a.typical))))
	k.end(syscall.SIGKILL)
	done := cmd.Wait() == nil // an answer is a promise
	time.Sleep(time.Duration(k.rng.IntN(100)) * time.Millisecond)
	k.start()
	t.Logf("round %d, %s: %v %s", n, a.name, map[bool]string{true: "was done", false: "was cut"}[done], strings.TrimSpace(said.String()))
	k.jobsOver()
	k.checkJobs(last)
	k.tidyUp(n, a, done)
	k.checkDatabases(n)
	if err := fio.wait(); err != nil {
		t.Fatalf("fio on a mounted disk: %v", err)
	}
	k.checkPoints()
	v := ask[tidemark.VerifyResult](k.stage, "verify")
	if len(v.Damaged) > 0 {
		t.Fatalf("verify: %v", v.Damaged)
	}
	k.note("orders", ask[tidemark.CaptureResult](k.stage, "capture", "orders").Point)
	if n%3 == 2 {
		k.change(1 << 20)
		k.importVolume(fmt.Sprintf("after%d", n))
	}
}

// lastJob is the number of the newest job.
func (k *killing) lastJob() int64 { return ask[[]tidemark.Job](k.stage, "jobs")[0].ID }

// checkJobs checks that jobs of kinds that are begun again are done in the end.
func (k *killing) checkJobs(last int64) {
	k.t.Helper()
	for _, j := range ask[[]tidemark.Job](k.stage, "jobs") {
		if j.ID > last && j.State != tidemark.JobDone && slices.Contains(begunAgain, j.Kind) {
			k.t.Fatalf("a job that was cut was not done in the end: %+v: %v", j, j.Error)
		}
	}
}

// tidyUp checks that what was done is there and what was cut is not, and removes it.
func (k *killing) tidyUp(n int, a act, done bool) {
	t := k.t
	have := func(name string) bool { _, err := k.try("points", name); return err == nil }
	made := map[string]string{"clone": "cut", "first import": "new", "mount": "m", "protect": "pro"}[a.name]
	if made == "" {
		return
	}
	name := fmt.Sprintf("%s%d", made, n)
	if done && !have(name) {
		t.Fatalf("%s was acknowledged and is gone", name)
	}
	if !have(name) {
		return
	}
	if !done {
		t.Logf("%s was made, though its command was cut", name)
	}
	switch a.name {
	case "clone":
		consistent(t, ask[[]tidemark.Clone](k.stage, "clones")[0].Connection)
		k.run("clone", "rm", name)
	case "mount":
		k.run("unmount", name)
	case "protect":
		k.run("capture", name)
		k.run("unprotect", name, "--yes")
	default:
		k.run("volume", "rm", name)
	}
}

// jobsOver waits until no job runs; what a start finishes may take a moment.
func (k *killing) jobsOver() {
	for range 200 {
		running := ""
		for _, j := range ask[[]tidemark.Job](k.stage, "jobs") {
			if j.State == tidemark.JobRunning || j.State == tidemark.JobQueued {
				running = fmt.Sprintf("%d %s", j.ID, j.Kind)
			}
		}
		if running == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	k.t.Fatalf("jobs run for ever: %v", ask[[]tidemark.Job](k.stage, "jobs"))
}

// checkDatabases checks the kept clone, and new clones of the newest and the first capture.
func (k *killing) checkDatabases(n int) {
	t := k.t
	kept := ask[[]tidemark.Clone](k.stage, "clones")
	if len(kept) != 1 || kept[0].Name != "kept" || kept[0].State != "running" {
		t.Fatalf("the clone that was kept: %+v", kept)
	}
	consistent(t, kept[0].Connection)
	if slots := sql(t, k.prod.conn(), "SELECT count(*) FROM pg_replication_slots"); slots != "1" {
		t.Fatalf("production keeps log for %s that receive it, and one does", slots)
	}
	points := []string{""}
	if n%4 == 3 { // the oldest does not change from one round to the next
		points = append(points, "@first")
	}
	for _, at := range points {
		name := fmt.Sprintf("look%d", n)
		c := ask[tidemark.Clone](k.stage, "clone", "orders"+at, name)
		consistent(t, c.Connection)
		k.run("clone", "rm", name)
	}
}

// checkPoints checks that every point noted is there and has the bytes that it had.
func (k *killing) checkPoints() {
	t := k.t
	have := map[string]string{}
	for _, app := range []string{"orders", "vol"} {
		for _, p := range ask[[]tidemark.RecoveryPoint](k.stage, "points", app) {
			have[app+"@"+p.Position.String()] = fmt.Sprint(p.Images)
		}
	}
	for ref, images := range k.roots {
		if have[ref] != images {
			t.Fatalf("%s was %s and is %s", ref, images, have[ref])
		}
	}
	out := filepath.Join(k.dir, "restored")
	for ref, sum := range k.sums {
		k.run("restore", ref, "--to", out, "--force")
		if now := checksum(t, out); now != sum {
			t.Fatalf("%s has other bytes than were imported", ref)
		}
	}
}

func checksum(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// fio is a run of fio that writes and verifies.
type fio struct {
	cmd  *exec.Cmd
	said bytes.Buffer
}

// startFio starts fio on a file of the mounted file system.
func (k *killing) startFio(n int) *fio {
	f := &fio{}
	f.cmd = exec.Command("fio", "--name=v", "--filename="+filepath.Join(k.busy(), "data"), "--size=24M", "--rw=randwrite", "--bsrange=4k-64k",
		"--ioengine=libaio", "--direct=1", "--iodepth=8", "--fsync=32", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--loops=2",
		"--rate=,24m", "--randseed="+strconv.Itoa(n+1), "--allow_file_create=1")
	f.cmd.Dir, f.cmd.Stdout, f.cmd.Stderr = k.dir, &f.said, &f.said
	if err := f.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { f.cmd.Process.Kill() })
	return f
}

func (f *fio) wait() error {
	if err := f.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, f.said.String())
	}
	return nil
}

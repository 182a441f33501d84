package proof

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// TestMain makes this test binary a sandbox, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "sandbox" {
		if err := Inside(context.Background()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("CI must be root")
	}
	t.Skip("needs root")
}

func TestParsePartitions(t *testing.T) {
	got := parsePartitions("NR=\"1\" START=\"2048\" SECTORS=\"81920\"\nNR=\"2\" START=\"98302\" SECTORS=\"2\"\nnonsense\nNR=\"5\" START=\"98304\" SECTORS=\"16384\"\n")
	want := []partition{{1, 1 << 20, 40 << 20}, {5, 48 << 20, 8 << 20}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
}

func FuzzParsePartitions(f *testing.F) {
	f.Add("NR=\"1\" START=\"2048\" SECTORS=\"81920\"\n")
	f.Add("NR=\"99999\" START=\"999999999999999\" SECTORS=\"999999999999999\"")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range parsePartitions(text) {
			if p.offset < 0 || p.len <= 0 || p.offset+p.len < p.offset {
				t.Errorf("%q has %+v", text, p)
			}
		}
	})
}

func TestTail(t *testing.T) {
	x := tail{most: 10}
	for _, s := range []string{"", "abc", "defghij", "k", strings.Repeat("x", 25) + "the end"} {
		x.write(s)
	}
	if string(x.text) != "xxxthe end" {
		t.Errorf("%q is kept", x.text)
	}
}

// Only root may be able to say what is run, and it must be something that can be.
func TestLoad(t *testing.T) {
	needRoot(t)
	for what, c := range map[string]struct {
		name  string
		spoil func(dir string) error
		of    tidemark.AppType
		kind  tidemark.Kind
	}{
		"program":          {"p", nil, tidemark.TypeVolume, ""},
		"sql":              {"q.sql", nil, tidemark.TypePostgres, ""},
		"sql of a volume":  {"q.sql", nil, tidemark.TypeVolume, tidemark.Invalid},
		"not executable":   {"plain", nil, tidemark.TypePostgres, tidemark.Invalid},
		"missing":          {"missing", nil, tidemark.TypePostgres, tidemark.NotFound},
		"above":            {"../x", nil, tidemark.TypePostgres, tidemark.Invalid},
		"itself":           {".", nil, tidemark.TypePostgres, tidemark.Invalid},
		"writable program": {"p", func(dir string) error { return os.Chmod(dir+"/p", 0o757) }, tidemark.TypeVolume, tidemark.Denied},
		"writable sql":     {"q.sql", func(dir string) error { return os.Chmod(dir+"/q.sql", 0o664) }, tidemark.TypePostgres, tidemark.Denied},
		"another's sql":    {"q.sql", func(dir string) error { return os.Chown(dir+"/q.sql", 1, 1) }, tidemark.TypePostgres, tidemark.Denied},
		"writable place":   {"p", func(dir string) error { return os.Chmod(dir, 0o777) }, tidemark.TypeVolume, tidemark.Denied},
		"another's place":  {"p", func(dir string) error { return os.Chown(dir, 1, 1) }, tidemark.TypeVolume, tidemark.Denied},
		"link":             {"link", func(dir string) error { return os.Symlink("p", dir+"/link") }, tidemark.TypeVolume, tidemark.Invalid},
		"directory":        {"d", func(dir string) error { return os.Mkdir(dir+"/d", 0o755) }, tidemark.TypeVolume, tidemark.Invalid},
		"place is missing": {"p", os.RemoveAll, tidemark.TypeVolume, tidemark.NotFound},
	} {
		dir := t.TempDir()
		for name, mode := range map[string]os.FileMode{"p": 0o755, "q.sql": 0o644, "plain": 0o644} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
				t.Fatal(err)
			}
		}
		if c.spoil != nil {
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
		}
		p := Probe{Dir: dir, Name: c.name}
		err := p.Load(c.of)
		if (err == nil) != (c.kind == "") || err != nil && tidemark.KindOf(err) != c.kind {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil && len(p.Text) == 0 {
			t.Errorf("%s: nothing was read", what)
		}
	}
}

// A sandbox without anything to prove comes to nothing, and the host keeps its root.
func TestRunWithoutDisks(t *testing.T) {
	needRoot(t)
	var steps []string
	r, err := Run(t.Context(), Spec{Name: "x", Type: tidemark.TypeVolume, Limit: time.Minute, Left: time.Minute}, func(n Note) { steps = append(steps, n.Step) })
	if err != nil || r.Reason != "" || r.Answered <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if !reflect.DeepEqual(steps, []string{"start", "recover", "check"}) {
		t.Errorf("it went through %v", steps)
	}
	if _, err := os.Stat("/disks"); err == nil {
		t.Error("the host has the directories of a sandbox")
	}
}

// A program sees neither what is the server's, also where that lies among programs, nor what is production's; and it is nobody.
func TestProbeSeesNothing(t *testing.T) {
	needRoot(t)
	ours, err := os.MkdirTemp("/opt", "tidemark-proof-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(ours) })
	theirs := t.TempDir()
	for _, dir := range []string{ours, theirs} {
		if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/secret", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	inner := filepath.Join(ours, "mounted here")
	if err := errors.Join(os.Mkdir(inner, 0o755), unix.Mount("tmpfs", inner, "tmpfs", 0, "size=4k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(inner, 0) })
	text := "#!/bin/sh\nls -d /opt/* /usr/bin/env\nls " + ours + " " + theirs + "\nid -un\ngrep -c mounted /proc/self/mounts\ngrep NoNewPrivs /proc/self/status\n"
	spec := Spec{Name: "x", Type: tidemark.TypeVolume, Hide: ours, Limit: time.Minute, Left: time.Minute, Probe: &Probe{Name: "p", Text: []byte(text), Limit: time.Minute}}
	r, err := Run(t.Context(), spec, func(Note) {})
	if err != nil || r.Reason != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, want := range []string{ours, "/usr/bin/env", "No such file", "nobody", "\n0\n", "NoNewPrivs:\t1"} {
		if !strings.Contains(r.Output, want) {
			t.Errorf("%q is missing in %q", want, r.Output)
		}
	}
	if strings.Contains(r.Output, "secret") {
		t.Errorf("it sees a secret: %q", r.Output)
	}
}

// What the host lacks says nothing of a point.
func TestRunWithoutDevice(t *testing.T) {
	needRoot(t)
	spec := Spec{Name: "x", Type: tidemark.TypeVolume, Disks: []Disk{{"disk", "/dev/null"}}, Limit: time.Minute, Left: time.Minute}
	if r, err := Run(t.Context(), spec, func(Note) {}); err == nil || !strings.Contains(err.Error(), "no block device") {
		t.Errorf("%+v, %v", r, err)
	}
}

// Whoever calls it by mistake keeps his root.
func TestInsideRefuses(t *testing.T) {
	if err := Inside(t.Context()); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("%v", err)
	}
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestTour runs the tours of the README and of the manual for teams word for word: every sh block of the section,
// as one script, in a directory of its own. A line that ends in "# prints X"
// must print X. At the end nothing of it is left on the host.
func TestTour(t *testing.T) {
	t.Run("readme", func(t *testing.T) { tour(t, "../../README.md") })
	t.Run("team", func(t *testing.T) {
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", "tidemark-db1").Run() }) // if it failed
		tour(t, "../../docs/team.md", "ip", "curl")
	})
}

func tour(t *testing.T, file string, more ...string) {
	for _, tool := range append([]string{"root", "postgres", "bash", "jq", "mkfs.ext4", "debugfs", "psql"}, more...) {
		if ok, err := condition("has:" + tool); err != nil || !ok {
			t.Skip("needs", tool, err)
		}
	}
	if _, err := os.Stat("/usr/lib/postgresql/15"); err != nil && os.Getenv("CI") == "" {
		t.Skip("the tour is written for PostgreSQL 15")
	}
	script := tourScript(t, file)
	home := tourHome(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-o", "pipefail", "-c", script)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, "PGPASSFILE=/nonexistent", "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	cmd.WaitDelay = 10 * time.Second
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		// In this order: what the tour attached can only be let go of while its server answers.
		for _, s := range tourStages(home) {
			s.strike()
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the tour failed: %v\n%s%s", err, out, serverLogs(home))
	}
	t.Logf("%s", out)
	if left := tourLeft(home); len(left) > 0 {
		t.Errorf("the tour left behind: %s", strings.Join(left, ", "))
	}
}

// tourHome makes the directory that the tour's own directory is made in, and
// takes back what a tour that failed has left there.
func tourHome(t *testing.T) string {
	home, err := os.MkdirTemp("/tmp", "tour-") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range tourStages(home) {
			data := filepath.Join(s.dir, "prod", "data")
			if _, err := os.Stat(filepath.Join(data, "postmaster.pid")); err == nil {
				exec.Command("su", "postgres", "-c", postgresBin()+"/pg_ctl -m immediate -D "+data+" stop").Run()
			}
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return home
}

// tourStages are the directories that the tour worked in.
func tourStages(home string) (list []*stage) {
	dirs, _ := filepath.Glob(filepath.Join(home, "tmp.*"))
	for _, d := range dirs {
		list = append(list, &stage{dir: d})
	}
	return list
}

// tourLeft names what a finished tour has left: all of its directory should be gone.
func tourLeft(home string) (list []string) {
	for _, s := range tourStages(home) {
		list = append(list, s.dir)
	}
	left := &stage{dir: home}
	for range 50 { // the kernel gives a loop device back when its last user is gone
		if len(left.loops())+len(left.mounts()) == 0 {
			return list
		}
		time.Sleep(20 * time.Millisecond)
	}
	return append(append(list, left.loops()...), left.mounts()...)
}

func serverLogs(home string) string {
	var all strings.Builder
	files, _ := filepath.Glob(filepath.Join(home, "tmp.*", "*.log"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil {
			fmt.Fprintf(&all, "\n%s:\n%s", f, text)
		}
	}
	return all.String()
}

var promise = regexp.MustCompile(`^(.*\S)\s+# prints (.*)$`)

// tourScript returns the sh blocks of the section "A tour …" of a Markdown
// file, each line announced before it runs, and each promised output compared.
func tourScript(t *testing.T, manual string) string {
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	_, tour, ok := strings.Cut(string(text), "\n## A tour ")
	if !ok {
		t.Fatalf("%s has no section \"A tour …\"", manual)
	}
	tour, _, _ = strings.Cut(tour, "\n## ")
	var script strings.Builder
	inside, blocks, file := false, 0, ""
	for line := range strings.Lines(tour) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "```yaml": // the file that its first line names
			file = "?"
		case file == "?":
			file = strings.TrimPrefix(line, "# ")
			fmt.Fprintf(&script, "cat >%s <<END\n", file)
		case file != "" && line == "```":
			fmt.Fprintln(&script, "END")
			file = ""
		case file != "":
			fmt.Fprintln(&script, line)
		case line == "```sh":
			inside, blocks = true, blocks+1
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			tourLine(&script, line)
		}
	}
	if blocks < 5 {
		t.Fatalf("the tour of %s has %d blocks of sh: was it renamed?", manual, blocks)
	}
	return script.String()
}

func tourLine(script *strings.Builder, line string) {
	fmt.Fprintf(script, "printf '%%s\\n' %s\n", shellQuote("$ "+line))
	m := promise.FindStringSubmatch(line)
	if m == nil {
		fmt.Fprintln(script, line)
		return
	}
	fmt.Fprintf(script, "said=$(%s); printf '%%s\\n' \"$said\"\n", m[1])
	fmt.Fprintf(script, "[ \"$said\" = %s ] || { echo 'the manual promises another output'; exit 1; }\n", shellQuote(m[2]))
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// TestManualIsWhole holds that docs/cli.md has an example of every command, and speaks of every flag.
func TestManualIsWhole(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	flag := regexp.MustCompile(`(?m)^ +(?:-(\w), |)--([a-z-]+)`)
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			look(sub)
		}
		if c.Runnable() && !c.Hidden && !strings.Contains(string(text), "\n"+c.CommandPath()+" ") && !strings.Contains(string(text), "\n"+c.CommandPath()+"\n") {
			t.Errorf("docs/cli.md has no example of `%s`", c.CommandPath())
		}
		for _, f := range flag.FindAllStringSubmatch(c.LocalFlags().FlagUsages(), -1) {
			long := "--" + f[2]
			said := regexp.MustCompile("(" + long + "|[ `]" + cmp.Or(strings.TrimSuffix("-"+f[1], "-"), long) + ")([^a-z-]|$)")
			if !said.Match(text) {
				t.Errorf("docs/cli.md has no word of --%s of `%s`", f[2], c.CommandPath())
			}
		}
	}
	look(root())
}

package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/script"
)

// Load reads the file of a probe, and refuses one that others than root could have changed, or that cannot be run.
func (p *Probe) Load(of tidemark.AppType) error {
	text, executable, err := script.Read(p.Dir, p.Name)
	switch {
	case err != nil:
		return err
	case p.sql() && of != tidemark.TypePostgres:
		return tidemark.Errorf(tidemark.Invalid, "%s is SQL, and there is no database", p.Name).WithHint("use a program")
	case !p.sql() && !executable:
		return tidemark.Errorf(tidemark.Invalid, "%s is neither executable nor SQL", p.Name).WithHint("chmod 755 " + filepath.Join(p.Dir, p.Name) + ", or call it NAME.sql")
	}
	p.Text = text
	return nil
}

func (p *Probe) sql() bool { return filepath.Ext(p.Name) == ".sql" }

// marker is in the environment of a sandbox, so that nobody who calls Inside by mistake loses the host's root.
const marker = "TIDEMARK_SANDBOX=1"

// errTooLong is why a proof is cut whose time is up.
var errTooLong = errors.New("its time is up")

// Run brings a point up in a sandbox, and returns what it found: that the point is not proven is in the report, and no error. An error says that nothing can be said of the
// point: ctx is done, or the host lacks something. note is told how far it is.
//
// When Run has returned, nothing of the sandbox runs any more; the kernel may take a moment longer to let go of its file systems.
func Run(ctx context.Context, spec Spec, note func(Note)) (Report, error) {
	w := watch{begun: time.Now(), note: note, output: tail{most: mostOutput}, r: Report{Steps: []tidemark.ProofStep{}, Checks: []tidemark.ProofCheck{}}}
	bounded, cancel := context.WithTimeoutCause(ctx, spec.Left, errTooLong)
	defer cancel()
	// It dies with the thread that starts it, which therefore has to be ours until it has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := w.run(bounded, spec)
	w.end()
	switch {
	case ctx.Err() != nil:
		return w.r, ctx.Err()
	case w.trouble != nil:
		return w.r, w.trouble
	case w.r.Reason != "":
	case errors.Is(context.Cause(bounded), errTooLong) && !w.done:
		w.r.Reason = fmt.Sprintf("the step %q was not done in time: all of it may take %v", w.last, spec.Limit)
	case !w.done:
		return w.r, tidemark.Errorf(tidemark.Unavailable, "the sandbox ended in the middle of %q: %v", w.last, err).WithHint("the server's log may say why; try again")
	}
	w.r.Output = string(w.output.text)
	return w.r, nil
}

// watch is what is known of a sandbox outside of it.
type watch struct {
	begun   time.Time
	note    func(Note)
	output  tail
	r       Report
	last    string // the step that it is in
	since   time.Time
	trouble error
	done    bool
}

// run starts the sandbox, and hears it until it ends.
func (w *watch) run(ctx context.Context, spec Spec) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "sandbox")
	cmd.Args[0] = os.Args[0]
	cmd.Env, cmd.Dir, cmd.Stderr = []string{"PATH=" + path, "LANG=C.UTF-8", marker}, "/", os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	w.begin("start")
	if err := cmd.Start(); err != nil {
		w.trouble = tidemark.Errorf(tidemark.Unavailable, "the sandbox cannot be made: %w", err).WithHint("it needs root, and a kernel with namespaces for mounts, network, processes and IPC")
		return err
	}
	defer in.Close() // its end is that of the sandbox, too
	if err := json.NewEncoder(in).Encode(spec); err != nil && ctx.Err() == nil {
		w.trouble = fmt.Errorf("tell the sandbox what to do: %w", err)
	}
	for events := json.NewDecoder(out); ; {
		var e event
		if err := events.Decode(&e); err != nil {
			break // its end, or that it was killed, is what Wait returns
		}
		w.hear(e)
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) { // it has nothing more to say, whatever it does
		return err
	}
	return cmd.Wait()
}

// path is where programs of the sandbox are found.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (w *watch) hear(e event) {
	if e.Step != "" {
		w.begin(e.Step)
	}
	if e.Progress != nil {
		w.note(Note{Progress: e.Progress})
	}
	w.output.write(e.Said)
	if e.Check != nil {
		w.r.Checks = append(w.r.Checks, *e.Check)
	}
	if e.Answered {
		w.r.Answered = time.Since(w.begun).Seconds()
	}
	if e.Reason != "" {
		w.r.Reason = e.Reason
	}
	if e.Trouble != nil {
		w.trouble = e.Trouble
	}
	w.done = w.done || e.Done
}

// begin begins a step.
func (w *watch) begin(step string) {
	if step == w.last {
		return
	}
	w.end()
	w.last, w.since = step, time.Now()
	w.note(Note{Step: step})
}

// end ends the step that goes on.
func (w *watch) end() {
	if w.last != "" && !w.since.IsZero() {
		w.r.Steps = append(w.r.Steps, tidemark.ProofStep{Name: w.last, Seconds: time.Since(w.since).Seconds()})
		w.since = time.Time{}
	}
}

// mostOutput is how much is kept of what checks and probes say, in bytes.
const mostOutput = 64 << 10

// tail keeps the end of what is written to it.
type tail struct {
	most int
	text []byte
}

func (t *tail) write(s string) {
	t.text = append(t.text, s...)
	if over := len(t.text) - t.most; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
}

package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"tidemark"
)

// box is a sandbox, from inside.
type box struct {
	spec Spec
	ctx  context.Context

	mu     sync.Mutex // guards enc and noted
	enc    *json.Encoder
	noted  time.Time
	reason string // of the first thing that failed
}

// Inside is all that the first process of a sandbox does. It reads its [Spec] from standard input, and ends when that ends. Only [Run] starts it.
func Inside(ctx context.Context) error {
	if os.Getpid() != 1 || os.Getenv("TIDEMARK_SANDBOX") != "1" {
		return tidemark.Errorf(tidemark.Invalid, "this is no sandbox").WithHint("`tidemark prove` makes one")
	}
	if err := os.Unsetenv("TIDEMARK_SANDBOX"); err != nil {
		return err
	}
	b := &box{ctx: ctx, enc: json.NewEncoder(os.Stdout)}
	if err := json.NewDecoder(os.Stdin).Decode(&b.spec); err != nil {
		return fmt.Errorf("read what to prove: %w", err)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // whoever started us is gone
	}()
	b.tell(b.prove())
	return nil
}

// tell tells how it ended.
func (b *box) tell(err error) {
	var trouble *tidemark.Error
	switch {
	case err == nil:
		b.send(event{Done: true, Reason: b.reason})
	case errors.As(err, &trouble) && isTrouble(err):
		b.send(event{Trouble: &tidemark.Error{Kind: trouble.Kind, Message: oneLine(err), Hint: trouble.Hint}})
	case errors.Is(err, exec.ErrNotFound):
		b.send(event{Trouble: tidemark.Errorf(tidemark.Unavailable, "the host lacks a program: %s", oneLine(err)).WithHint("install it")})
	case isTrouble(err):
		b.send(event{Trouble: tidemark.Errorf(tidemark.Unavailable, "%s", oneLine(err))})
	default:
		b.send(event{Done: true, Reason: oneLine(err)})
	}
}

// troubleError is an error that says nothing of the point.
type troubleError struct{ error }

func (t *troubleError) Unwrap() error { return t.error }

// isTrouble reports whether an error says nothing of the point: the host lacks something.
func isTrouble(err error) bool {
	var t *troubleError
	return errors.As(err, &t) || errors.Is(err, exec.ErrNotFound)
}

// prove does all steps. Its error is why the point did not come up.
func (b *box) prove() error {
	if err := enter(b.spec.Disks, b.spec.Hide); err != nil {
		return &troubleError{fmt.Errorf("make the sandbox: %w", err)}
	}
	if b.spec.Type == tidemark.TypePostgres {
		return b.provePostgres()
	}
	return b.proveDisks()
}

func (b *box) send(e event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.enc.Encode(e) // nobody hears us any more: then we are about to be killed
}

func (b *box) step(name string) { b.send(event{Note: Note{Step: name}}) }

// answered tells that the application gave its first answer.
func (b *box) answered() { b.send(event{Answered: true}) }

// noteEvery is how often progress is told.
const noteEvery = 200 * time.Millisecond

func (b *box) progress(p tidemark.Progress) {
	b.mu.Lock()
	due := time.Since(b.noted) >= noteEvery
	if due {
		b.noted = time.Now()
	}
	b.mu.Unlock()
	if due {
		b.send(event{Note: Note{Progress: &p}})
	}
}

// Write takes what checks and the probe say.
func (b *box) Write(p []byte) (int, error) {
	b.send(event{Said: strings.ToValidUTF8(string(p), "?")})
	return len(p), nil
}

// skipped is why a check was not made.
type skipped string

func (s skipped) Error() string { return string(s) }

// check makes one check. That it fails is noted, and the others are made all the same; its error is one that says nothing of the point.
func (b *box) check(name string, fn func() (detail string, err error)) error {
	fmt.Fprintf(b, "== %s\n", name)
	begun := time.Now()
	detail, err := fn()
	c := tidemark.ProofCheck{Name: name, Result: tidemark.CheckOK, Detail: detail}
	var why skipped
	switch {
	case errors.As(err, &why):
		c.Result, c.Detail = tidemark.CheckSkipped, string(why)
	case err != nil && (isTrouble(err) || b.ctx.Err() != nil):
		return err
	case err != nil:
		c.Result, c.Detail = tidemark.CheckFailed, oneLine(err)
		b.fail("%s", c.Detail)
		fmt.Fprintf(b, "%v\n", err)
	}
	c.Seconds = time.Since(begun).Seconds()
	b.send(event{Check: &c})
	return nil
}

// fail notes that something failed; the first is the reason.
func (b *box) fail(format string, args ...any) {
	if b.reason == "" {
		b.reason = fmt.Sprintf(format, args...)
	}
}

// oneLine is an error in one line of bounded length.
func oneLine(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

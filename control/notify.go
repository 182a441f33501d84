package control

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/workflow"
)

// message is what is posted to a URL.
type message struct {
	Delivery string    `json:"delivery"` // the same if it comes again
	Time     time.Time `json:"time"`
	Workflow string    `json:"workflow"`
	Version  int64     `json:"version"`
	Run      int64     `json:"run"`
	Step     string    `json:"step"`
	Level    string    `json:"level"`
	Message  string    `json:"message"`
	// FailedStep and Failure say why, if it is told because a step has failed.
	FailedStep string `json:"failed_step,omitempty"`
	Failure    string `json:"failure,omitempty"`
}

// doNotify records an event and posts it. It may come twice, if the server stops between the post and its record.
func doNotify(ctx context.Context, d doing[*workflow.Notify]) (any, error) {
	m := message{Delivery: fmt.Sprintf("%s/%d/%s", d.c.identity, d.id, d.step.ID), Time: d.begunAt(), Workflow: d.Name, Version: d.Version, Run: d.id, Step: d.step.ID,
		Level: cmp.Or(string(d.body.Level), string(workflow.LevelInfo)), Message: d.body.Message}
	told := "workflow " + d.Name + ": " + m.Message
	if d.step.OnFailure {
		m.FailedStep, m.Failure = d.failed, Explain(d.failure).Message
		told += fmt.Sprintf(" (step %s: %s)", m.FailedStep, m.Failure)
	}
	if !d.resumed {
		d.c.event(m.Level, "", "%s", told)
	}
	if d.body.URL == "" {
		return nil, nil
	}
	var key []byte
	if d.body.Secret != "" {
		var err error
		if key, err = d.c.readSecret(d.body.Secret); err != nil {
			return nil, err
		}
	}
	return nil, outgoing{d.body.URL, key, m.Delivery, mustJSON(m)}.post(ctx, postPause)
}

// begunAt is when the step was begun, which a message that comes again says, too.
func (d doing[B]) begunAt() time.Time {
	if b, ok := d.begun[d.step.ID]; ok {
		return b.Started
	}
	return time.Now()
}

// readSecret reads the key of a signature, from a file that only who runs the server can read.
func (c *Control) readSecret(name string) ([]byte, error) {
	path := c.path(secretDir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.NotFound, "the secret %s cannot be read: %w", name, err).WithHint("put it into " + path + ", with mode 600")
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Getuid() && st.Uid != 0 {
		return nil, tidemark.Errorf(tidemark.Denied, "others can read or change the secret %s", name).WithHint("chmod 600 " + path)
	}
	key, err := io.ReadAll(io.LimitReader(f, 4096))
	if key = bytes.TrimSpace(key); err == nil && len(key) < 16 {
		err = tidemark.Errorf(tidemark.Invalid, "the secret %s is shorter than 16 bytes", name).WithHint("make one: openssl rand -hex 32")
	}
	return key, err
}

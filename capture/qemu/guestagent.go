package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// The guest agent of QEMU runs in a guest, and is spoken with on a channel that QEMU shows as a unix socket. It does not greet, and
// what another client has left unread comes first: so each connection begins with a number that it has to say after us.

// guestTimeout is how long a guest agent may take for an answer. It writes file systems back before they are frozen.
const guestTimeout = 20 * time.Second

// ErrMayBeFrozen is in the error of a [FreezeGuest] that has failed and could not thaw what it may have frozen.
var ErrMayBeFrozen = errors.New("the guest may be frozen")

// FreezeGuest has the guest agent behind a unix socket freeze all file systems of its guest, until [ThawGuest]. If it fails they are
// thawed, whatever had frozen them: an agent refuses also because an earlier freeze lasts. Only where the agent was asked nothing, nothing is.
func FreezeGuest(ctx context.Context, socket string) error {
	n, err := askGuest(ctx, socket, "guest-fsfreeze-freeze")
	if err == nil && n == 0 {
		err = errors.New("the guest agent has frozen no file system")
	}
	if err == nil || errors.Is(err, errNoGuest) {
		return err
	}
	terr := ThawGuest(context.WithoutCancel(ctx), socket)
	switch {
	case terr == nil:
		return err
	case isRefusal(err) && isRefusal(terr): // it does neither
		return fmt.Errorf("%w; %w", err, terr)
	}
	return fmt.Errorf("%w; %w: %w", err, ErrMayBeFrozen, terr)
}

// isRefusal reports whether an error is an answer of the guest agent.
func isRefusal(err error) bool {
	var refused *CommandError
	return errors.As(err, &refused)
}

// thawPause is how soon a thaw is tried again: a frozen guest waits for it.
const thawPause = 200 * time.Millisecond

// ThawGuest lets the file systems of a guest go on; that they are not frozen is fine. While nobody answers, it tries again for a while.
func ThawGuest(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	for {
		_, err := askGuest(ctx, socket, "guest-fsfreeze-thaw")
		if err == nil || isRefusal(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(thawPause):
		}
	}
}

// errNoGuest: nothing was asked of a guest agent.
var errNoGuest = errors.New("the guest agent does not answer")

// askGuest has a guest agent do something, and returns of how many file systems it says that it has.
func askGuest(ctx context.Context, socket, command string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNoGuest, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	r := bufio.NewReader(io.LimitReader(conn, maxMessage))
	if err := syncGuest(conn, r); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoGuest, err)
	}
	if err := tellGuest(conn, command, nil); err != nil {
		return 0, err
	}
	err = hearGuest(r, command, &n)
	return n, err
}

func tellGuest(w io.Writer, command string, args any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err == nil {
		_, err = w.Write(append(line, '\n'))
	}
	return err
}

// hearGuest reads the answer to a command.
func hearGuest(r *bufio.Reader, command string, result any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("%s: the answer is none of a guest agent: %w", command, err)
	}
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	return json.Unmarshal(m.Return, result)
}

// guestMark comes before the answer to guest-sync-delimited, and resets the agent's parser when we send it.
const guestMark = 0xff

// syncGuest skips what was not meant for us.
func syncGuest(w io.Writer, r *bufio.Reader) error {
	want := rand.Int64N(1 << 31)
	if _, err := w.Write([]byte{guestMark}); err != nil {
		return err
	}
	if err := tellGuest(w, "guest-sync-delimited", map[string]int64{"id": want}); err != nil {
		return err
	}
	for {
		if _, err := r.ReadBytes(guestMark); err != nil {
			return err
		}
		var got int64
		if err := hearGuest(r, "guest-sync-delimited", &got); err == nil && got == want {
			return nil
		}
	}
}

package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
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
	return nil, post(ctx, d.body.URL, key, m, postPause)
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

const (
	// postTries is how often it is tried to post a message, and postPause how long before the second attempt; each pause is twice the last.
	postTries = 6
	postPause = time.Second
	postLimit = 15 * time.Second // of one attempt
)

// post posts a message as JSON, signed if there is a key, until it is taken, or not wanted.
func post(ctx context.Context, to string, key []byte, m message, pause time.Duration) error {
	body := mustJSON(m)
	var err error
	for try := range postTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause << (try - 1)):
			}
		}
		var again bool
		if again, err = postOnce(ctx, to, key, m, body); err == nil || !again {
			return err
		}
	}
	return err
}

// postOnce makes one attempt, and says whether another makes sense.
func postOnce(ctx context.Context, to string, key []byte, m message, body []byte) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return false, notTaken(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "tidemark/"+tidemark.Version)
	req.Header.Set("X-Tidemark-Delivery", m.Delivery)
	if key != nil {
		at := strconv.FormatInt(time.Now().Unix(), 10)
		req.Header.Set("X-Tidemark-Timestamp", at)
		req.Header.Set("X-Tidemark-Signature", "sha256="+sign(key, at, body))
	}
	client := http.Client{CheckRedirect: sameHost}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return !errors.Is(err, errElsewhere), notTaken(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return false, nil
	}
	again = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout
	return again, tidemark.Errorf(tidemark.Unavailable, "%s answered the message with %s", req.URL.Host, resp.Status)
}

// sign is the signature of a message: HMAC-SHA256 (RFC 2104) over the time, a full stop, and the body, in hexadecimal.
func sign(key []byte, at string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(at + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

var errElsewhere = errors.New("it redirects to another host")

// sameHost lets nobody else have what is meant for one host.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		return errElsewhere
	}
	if len(via) > 3 {
		return errors.New("it redirects too often")
	}
	return nil
}

// notTaken says that a message was not taken. A URL's path may be a secret, so that only its host is named.
func notTaken(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		host := "the URL"
		if p, e := url.Parse(u.URL); e == nil {
			host = p.Host
		}
		return tidemark.Errorf(tidemark.Unavailable, "the message was not taken by %s: %s", host, strings.ReplaceAll(u.Err.Error(), u.URL, host))
	}
	return tidemark.Errorf(tidemark.Invalid, "the message cannot be posted")
}

package control

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"tidemark"
)

// What is posted to URLs, by steps of workflows and to webhooks, is posted here: as JSON, signed if there is a key, to nobody else than was named.

const (
	// postTries is how often it is tried to post a message, and postPause how long before the second attempt; each pause is twice the last.
	postTries = 6
	postPause = time.Second
	postLimit = 15 * time.Second // of one attempt
	// answerLimit is how much of an answer is read, in bytes: nobody needs more than what it begins with.
	answerLimit = 512
)

// outgoing is a message that is posted.
type outgoing struct {
	to       string // a URL
	key      []byte // of its signature; nil: it is not signed
	delivery string // the same if it comes again
	body     []byte // JSON
}

// reply is what an attempt to post a message was answered.
type reply struct {
	status int    // of HTTP; 0: there was no answer
	begins string // the begin of the answer
	again  bool   // another attempt makes sense
}

// post posts a message until it is taken, or not wanted.
func (o outgoing) post(ctx context.Context, pause time.Duration) error {
	var err error
	for try := range postTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause << (try - 1)):
			}
		}
		var r reply
		if r, err = o.once(ctx); err == nil || !r.again {
			return err
		}
	}
	return err
}

// once makes one attempt. It fails unless the message was taken.
func (o outgoing) once(ctx context.Context) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, postLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.to, bytes.NewReader(o.body))
	if err != nil {
		return reply{}, notTaken(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "tidemark/"+tidemark.Version)
	req.Header.Set("X-Tidemark-Delivery", o.delivery)
	if o.key != nil {
		at := strconv.FormatInt(time.Now().Unix(), 10)
		req.Header.Set("X-Tidemark-Timestamp", at)
		req.Header.Set("X-Tidemark-Signature", "sha256="+sign(o.key, at, o.body))
	}
	client := http.Client{CheckRedirect: sameHost}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return reply{again: !errors.Is(err, errElsewhere)}, notTaken(err)
	}
	defer resp.Body.Close()
	begins, _ := io.ReadAll(io.LimitReader(resp.Body, answerLimit)) // the status says whether it was taken, whatever comes after it
	r := reply{status: resp.StatusCode, begins: oneLine(begins)}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return r, nil
	}
	r.again = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout
	return r, tidemark.Errorf(tidemark.Unavailable, "%s answered the message with %s", req.URL.Host, resp.Status)
}

// oneLine makes one line of what somebody sent, without what a terminal would take for more than letters.
func oneLine(text []byte) string {
	printable := func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}
	return strings.Join(strings.Fields(strings.Map(printable, strings.ToValidUTF8(string(text), ""))), " ")
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

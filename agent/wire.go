package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tidemark"
)

// message is one line of JSON on the socket between a server and its agent. From
// the server: a call, with Verb; or the end of a call's context, with Cancel. From
// the agent: what a call has to tell meanwhile, with Note; or its answer, with Done.
type message struct {
	Call uint64 `json:"call"`
	Verb string `json:"verb,omitempty"`
	// Within is how long the call may take, 0 for ever. A time of day would be another one by the agent's clock.
	Within  time.Duration   `json:"within,omitempty"`
	Cancel  bool            `json:"cancel,omitempty"`
	Note    bool            `json:"note,omitempty"`
	Done    bool            `json:"done,omitempty"`
	Failure *failure        `json:"failure,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// wire sends and receives messages. Sends may be concurrent, one goroutine receives.
type wire struct {
	mu  sync.Mutex // guards enc
	enc *json.Encoder
	dec *json.Decoder
	in  *intake // what dec reads
}

func newWire(rw io.ReadWriter) *wire {
	in := &intake{Reader: rw}
	return &wire{enc: json.NewEncoder(rw), dec: json.NewDecoder(in), in: in}
}

// maxMessage bounds what an agent of another host says at once, in bytes. The longest that it has to say is what could be protected there: some
// hundred bytes for each file system and device. It is not more than that needs, for it becomes many times as much memory when it is read.
const maxMessage = 4 << 20

// readAhead bounds what is read together, in bytes, and so what is read of the messages behind one.
const readAhead = 64 << 10

var errTooLong = tidemark.Errorf(tidemark.Invalid, "the agent has said more than %d MiB at once", maxMessage>>20).WithHint("server and agent must be of one version; if they are, see what runs on that host")

// intake reads what one end says, and no more for one message than it may say.
type intake struct {
	io.Reader
	most  int           // bytes; 0: as many as there are
	left  int           // for this message
	reads atomic.Uint64 // that brought something: a long message on a slow line is heard, too
}

// Read implements [io.Reader].
func (i *intake) Read(p []byte) (int, error) {
	if i.most > 0 {
		if i.left == 0 {
			return 0, errTooLong
		}
		p = p[:min(len(p), i.left, readAhead)]
	}
	n, err := i.Reader.Read(p)
	i.left -= n
	if n > 0 {
		i.reads.Add(1)
	}
	return n, err
}

func (w *wire) send(m message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.enc.Encode(m)
}

func (w *wire) receive() (m message, err error) {
	w.in.left = w.in.most
	err = w.dec.Decode(&m)
	return m, err
}

// failure is an error on its way to another process: what was said, and what
// errors.Is and errors.As find in it.
type failure struct {
	Text  string          `json:"text"`
	Told  *tidemark.Error `json:"told,omitempty"`
	Errno syscall.Errno   `json:"errno,omitempty"`
	// Ended is why the call's context was done.
	Ended string `json:"ended,omitempty"`
}

func pack(err error) *failure {
	f := &failure{Text: err.Error()}
	errors.As(err, &f.Told)
	errors.As(err, &f.Errno)
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			f.Ended = e.Error()
		}
	}
	return f
}

// Error is what the error said where it happened.
func (f *failure) Error() string { return f.Text }

// Unwrap returns what the error was made of.
func (f *failure) Unwrap() (causes []error) {
	if f.Told != nil {
		causes = append(causes, f.Told)
	}
	if f.Errno != 0 {
		causes = append(causes, f.Errno)
	}
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if f.Ended == e.Error() {
			causes = append(causes, e)
		}
	}
	return causes
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
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
}

func newWire(rw io.ReadWriter) *wire {
	return &wire{enc: json.NewEncoder(rw), dec: json.NewDecoder(rw)}
}

func (w *wire) send(m message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.enc.Encode(m)
}

func (w *wire) receive() (m message, err error) {
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

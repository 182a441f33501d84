package capture

import (
	"context"

	"tidemark"
)

// Sink opens streams of changes into one timeline.
type Sink interface {
	// Open begins the stream id, or resumes it. before is the stream that the source had open
	// last, or empty. It returns when the timeline has said how far it has come.
	Open(ctx context.Context, id, before string) (Stream, error)
}

// Mark is a bookmark on its way to a timeline, and what it says of its point there.
type Mark struct {
	Name        string               `json:"name"`
	Consistency tidemark.Consistency `json:"consistency"`
	Labels      map[string]string    `json:"labels,omitempty"`
	// ID tells a mark that a stream brings a second time from another one of the same name.
	ID string `json:"id,omitempty"`
	// Time is when the disks were so, in Unix nanoseconds; 0: when the timeline gets it.
	Time int64 `json:"time,omitempty"`
}

// Stream takes changes in order. One goroutine may call Sync while another calls the rest. After an
// error the stream takes no more, and has to be opened again.
type Stream interface {
	// Applied returns how many changes of the stream the timeline had when it was opened.
	Applied() uint64
	// Known reports whether the stream follows one that the timeline has. If not, nothing is known of what
	// its disks hold.
	Known() bool
	// Apply sends the next changes. They need not be applied when it returns, and are not durable.
	// It keeps nothing of list.
	Apply(list []Change) error
	// Lose says that changes are missing from here on: since a time in Unix nanoseconds, or 0 if that is
	// not known, and why. What comes then mends that in no order of time.
	Lose(since int64, why string) error
	// Bookmark marks the point between the changes before and after it. After a connection
	// was lost it may come a second time.
	Bookmark(m Mark) error
	// Whole says that nothing is missing any more.
	Whole() error
	// Sync makes durable all that was sent before, and returns how many changes of the stream that is.
	Sync() (durable uint64, err error)
	// Close ends the connection, whatever it waits for.
	Close() error
}

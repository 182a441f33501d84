package capture

import "context"

// Sink opens streams of changes into one timeline.
type Sink interface {
	// Open begins the stream id, or resumes it. before is the stream that the source had open
	// last, or empty. It returns when the timeline has said how far it has come.
	Open(ctx context.Context, id, before string) (Stream, error)
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
	// Whole says that nothing is missing any more.
	Whole() error
	// Sync makes durable all that was sent before, and returns how many changes of the stream that is.
	Sync() (durable uint64, err error)
	// Close ends the connection, whatever it waits for.
	Close() error
}

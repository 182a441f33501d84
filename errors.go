package tidemark

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an [Error] is, and so what a caller can do about it.
type Kind string

// The kinds of errors.
const (
	Invalid     Kind = "invalid"     // the request is wrong and will stay wrong
	NotFound    Kind = "not-found"   // what it speaks of does not exist
	Conflict    Kind = "conflict"    // it exists already, is busy, or is in use
	Denied      Kind = "denied"      // the caller has no right to it
	Unavailable Kind = "unavailable" // something needed is not there now: a server, a tool, space
	Corrupt     Kind = "corrupt"     // stored bytes are not what was stored
	Cancelled   Kind = "cancelled"   // somebody cancelled it
	Internal    Kind = "internal"    // a fault of Tidemark
)

// Error is a failure told to a user: what is wrong, and what to do.
type Error struct {
	Kind    Kind   `json:"kind" enum:"invalid,not-found,conflict,denied,unavailable,corrupt,cancelled,internal" doc:"What sort of failure it is, and so what can be done about it."`
	Message string `json:"message" doc:"One line: what is wrong."`
	Hint    string `json:"hint,omitempty" doc:"One line: what to do."`
	Cause   error  `json:"-"` // for errors.Is and logs
}

// Error is the message, and the hint where there is one.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// WithHint returns e with a hint.
func (e *Error) WithHint(hint string) *Error {
	c := *e
	c.Hint = hint
	return &c
}

// Errorf makes an error of a kind. A %w verb sets its cause.
func Errorf(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// KindOf returns the kind of the first [Error] in err's chain, or Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

package tidemark

// MediaProblem is the media type of a [Problem].
const MediaProblem = "application/problem+json"

// Problem is an [Error] as the API answers with it: a problem detail of RFC 9457, whose members kind and hint are ours.
type Problem struct {
	Type   string `json:"type" format:"uri" doc:"Which sort of problem it is: urn:tidemark:problem: and the kind. It never changes."`
	Title  string `json:"title" doc:"What sort of problem that is, in words."`
	Status int    `json:"status" doc:"The status of the answer."`
	Detail string `json:"detail" doc:"One line: what is wrong."`
	Kind   Kind   `json:"kind" enum:"invalid,not-found,conflict,denied,unavailable,corrupt,cancelled,internal" doc:"The kind of the error, and so what can be done about it."`
	Hint   string `json:"hint,omitempty" doc:"One line: what to do."`
}

// problemType is what the type of every problem begins with.
const problemType = "urn:tidemark:problem:"

// Kinds are all kinds of errors, with what each of them means.
var Kinds = map[Kind]string{
	Invalid:     "The request is wrong, and will stay wrong",
	NotFound:    "What the request speaks of does not exist",
	Conflict:    "It exists already, is busy, or is in use",
	Denied:      "The caller has no right to it",
	Unavailable: "Something that is needed is not there now",
	Corrupt:     "Stored bytes are not what was stored",
	Cancelled:   "Somebody cancelled it",
	Internal:    "A fault of Tidemark",
}

// Problem returns e as the API answers with it, with a status.
func (e *Error) Problem(status int) *Problem {
	return &Problem{Type: problemType + string(e.Kind), Title: Kinds[e.Kind], Status: status, Detail: e.Message, Kind: e.Kind, Hint: e.Hint}
}

// Err returns the error that p tells of. A kind that is not known, of a server that is newer, is [Internal].
func (p *Problem) Err() *Error {
	if _, known := Kinds[p.Kind]; !known {
		return &Error{Kind: Internal, Message: p.Detail, Hint: p.Hint}
	}
	return &Error{Kind: p.Kind, Message: p.Detail, Hint: p.Hint}
}

// Error is the detail, and the hint where there is one.
func (p *Problem) Error() string { return p.Err().Error() }

// GetStatus is the status of the answer.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type of a problem in the place of that of other answers.
func (p *Problem) ContentType(string) string { return MediaProblem }

// Page is a part of a list.
type Page[T any] struct {
	Items []T    `json:"items" nullable:"false" doc:"The entries of this part."`
	Next  string `json:"next,omitempty" doc:"The cursor of the next part; missing: this is the last."`
}

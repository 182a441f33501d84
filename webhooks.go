package tidemark

import (
	"slices"
	"time"
)

// WebhookState is how a webhook is.
type WebhookState string

// The states of a webhook.
const (
	WebhookOff     WebhookState = "off"     // nothing is posted
	WebhookOK      WebhookState = "ok"      // what was posted last was taken, or nothing was yet
	WebhookFailing WebhookState = "failing" // what was posted last was not taken, and is posted again
)

// Webhook is a URL that events are posted to, in order, each until it is taken.
type Webhook struct {
	Name         string       `json:"name" doc:"Its name."`
	URL          string       `json:"url" doc:"Where events are posted to. Who may not change webhooks is told scheme and host alone, since a path may be a secret."`
	Level        string       `json:"level" enum:"info,warning,error" doc:"The least grave events that are posted."`
	Applications []string     `json:"applications,omitempty" doc:"Only events of applications with one of these names or patterns are posted; missing: those of all, and of the server itself."`
	Secret       string       `json:"secret,omitempty" doc:"The file of the server that has the key of the signature, never the key; missing: nothing is signed."`
	State        WebhookState `json:"state" enum:"off,ok,failing" doc:"How it is."`
	Author       string       `json:"author,omitempty" doc:"Who added it; missing: the administrator at the socket."`
	Created      time.Time    `json:"created" doc:"When it was added."`
	Pending      int64        `json:"pending" doc:"How many events wait to be posted."`
	Oldest       *time.Time   `json:"oldest,omitempty" doc:"When the oldest of these happened."`
	Missed       int64        `json:"missed,omitempty" doc:"How many events the server has forgotten before they were taken; the receiver is told next."`
	Delivered    int64        `json:"delivered" doc:"How many messages were taken."`
	Last         *time.Time   `json:"last,omitempty" doc:"When the last of these was."`
	Failed       int64        `json:"failed" doc:"How many attempts failed."`
	FailingSince *time.Time   `json:"failing_since,omitempty" doc:"When the first of the attempts failed that have failed one after another."`
	Error        string       `json:"error,omitempty" doc:"Why the last attempt failed, while it is failing."`
}

// WebhookSpec asks for a webhook.
type WebhookSpec struct {
	Name         string   `json:"name" doc:"A new name."`
	URL          string   `json:"url" doc:"An http or https URL, without a user."`
	Level        string   `json:"level,omitempty" enum:"info,warning,error" doc:"The least grave events that are posted; missing: info, which is all."`
	Applications []string `json:"applications,omitempty" doc:"Names of applications, or patterns with * and ?, whose events are posted alone; missing: all events."`
	Secret       string   `json:"secret,omitempty" doc:"The name of a file in the directory secrets of the data directory, with the key that messages are signed with."`
	Off          bool     `json:"off,omitempty" doc:"Post nothing yet."`
}

// WebhookChange asks that a webhook become other than it is. What is nil stays.
type WebhookChange struct {
	URL          *string  `json:"url,omitempty" doc:"Another URL. What waits is posted there."`
	Level        *string  `json:"level,omitempty" enum:"info,warning,error" doc:"The least grave events that are posted."`
	Applications []string `json:"applications,omitzero" doc:"The applications whose events are posted alone; an empty list: all events."`
	Secret       *string  `json:"secret,omitempty" doc:"The file with the key of the signature; empty: nothing is signed."`
	Off          *bool    `json:"off,omitempty" doc:"Whether nothing is posted. What happens meanwhile, and what waited, is not posted later either."`
}

// WebhookTest is what became of a message that was posted to try a webhook.
type WebhookTest struct {
	Delivery string  `json:"delivery" doc:"The number of the message, which the receiver has, too."`
	Taken    bool    `json:"taken" doc:"It was taken."`
	Status   int     `json:"status,omitempty" doc:"The HTTP status that it was answered with; missing: there was no answer."`
	Answer   string  `json:"answer,omitempty" doc:"How the answer begins."`
	Seconds  float64 `json:"seconds" doc:"How long it took."`
	Error    string  `json:"error,omitempty" doc:"Why it was not taken."`
}

// EventLevels are the levels of events, the least grave first.
func EventLevels() []string { return []string{"info", "warning", "error"} }

// CheckEventLevel returns an error of kind [Invalid] unless s is the level of events.
func CheckEventLevel(s string) error {
	if !slices.Contains(EventLevels(), s) {
		return Errorf(Invalid, "%.20q is no level", s).WithHint("there are info, warning and error")
	}
	return nil
}

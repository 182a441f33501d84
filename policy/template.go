package policy

import "time"

// Policy names one line of a template: what it is about.
type Policy string

// The policies of a template.
const (
	PolicyCapture   Policy = "capture"
	PolicyKeep      Policy = "keep"
	PolicyCDP       Policy = "cdp"
	PolicyAppShot   Policy = "appshot"
	PolicyLog       Policy = "log"
	PolicyVerify    Policy = "verify"
	PolicyReplicate Policy = "replicate"
	PolicyVault     Policy = "vault"
)

// Template is an SLA template: what is promised to every application that has it. A
// policy that is nil is not promised. Check it with [Template.Validate] before use.
type Template struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// TimeZone is an IANA name such as Europe/Berlin, by which calendar times, windows and
	// the days of keep are meant. Empty: UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// Priority says who goes first when not all can: 1 to 100, the higher the earlier. 0: 50.
	Priority int `json:"priority,omitempty"`
	// RPO is the most that may be lost: how old the newest recoverable moment may be. 0: not promised.
	RPO Duration `json:"rpo,omitzero"`
	// RTO is how long it may take until the application can be used again. 0: not promised.
	RTO Duration `json:"rto,omitzero"`
	// Spread is the time over which the applications of the template are spread that would
	// begin together, each at its own place in it. Nil: 5m, and at most a quarter of an interval.
	Spread *Duration `json:"spread,omitempty"`

	Capture   *Capture   `json:"capture,omitempty"`
	Keep      *Retention `json:"keep,omitempty"`
	CDP       *CDP       `json:"cdp,omitempty"`
	AppShot   *AppShot   `json:"appshot,omitempty"`
	Log       *Log       `json:"log,omitempty"`
	Verify    *Verify    `json:"verify,omitempty"`
	Replicate *Copy      `json:"replicate,omitempty"`
	Vault     *Copy      `json:"vault,omitempty"`
}

// Capture is when captures are made: either Every or At, on the days that Weekdays and
// DaysOfMonth both allow, and only where the clock is in a window and in no blackout.
type Capture struct {
	// Every is the time from the begin of one capture to that of the next, at least a minute.
	Every Duration `json:"every,omitzero"`
	// At are times of day, each of which is promised once on every such day, whatever the clocks do on it.
	At       []TimeOfDay `json:"at,omitempty"`
	Weekdays []Weekday   `json:"weekdays,omitempty"` // none: all
	// DaysOfMonth are 1 to 31; one that a month lacks is its last day. None: all.
	DaysOfMonth []int    `json:"days_of_month,omitempty"`
	Windows     []Window `json:"windows,omitempty"` // none: always
	Blackouts   []Window `json:"blackouts,omitempty"`
}

// Of says which point stands for an hour, day, week, month or year.
type Of string

// The values of Of.
const (
	OfLast  Of = "last" // also if empty
	OfFirst Of = "first"
)

// Retention is which points are kept. A point is kept if any of these says so; see [Keep].
type Retention struct {
	Count int `json:"count,omitempty"` // the newest so many
	// Age keeps what is not older than that, counted back from now, or from the newest point if that is older.
	Age Duration `json:"age,omitzero"`
	// Hourly to Yearly keep one point of each of so many hours, days, weeks (from Monday), months and
	// years by the clock of the template's zone. Those without a point do not count.
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
	Of      Of  `json:"of,omitempty"`
	// LastVerified keeps the newest point that was verified.
	LastVerified bool `json:"last_verified,omitempty"`
}

// CDP is the any-point window of a journaled application.
type CDP struct {
	Window Duration `json:"window"`          // any point of so much of the past
	Bytes  Size     `json:"bytes,omitempty"` // and at most so many bytes of journal; 0: no bound
}

// AppShot is how often a journaled application is bookmarked by itself.
type AppShot struct {
	Every Duration `json:"every"`
	// Keep is how long these bookmarks are kept. 0: as long as the window of cdp, or, without one, by keep.
	Keep Duration `json:"keep,omitzero"`
}

// Log is the log of a database.
type Log struct {
	Every Duration `json:"every,omitzero"` // it is received at least so often. 0: as it comes
	Keep  Duration `json:"keep"`           // any point of so much of the past; captures of that time, and one from before it, are kept for it
}

// Which says which point a verify takes.
type Which string

// The values of Which.
const (
	WhichLatest Which = "latest" // also if empty
	WhichRandom Which = "random" // of the last Of points
)

// Verify is how often a point is proved good: brought up in a sandbox and checked, by a recovery proof.
type Verify struct {
	Every Duration `json:"every"`
	Point Which    `json:"point,omitempty"`
	Of    int      `json:"of,omitempty"` // with random: of the newest so many. 0: 10
	// Prove, if it is false, has all bytes of the point read and checked instead. Nil: true.
	Prove *bool  `json:"prove,omitempty"`
	Probe string `json:"probe,omitempty"` // the name of what looks at the point once it is brought up, beside the checks. Empty: nothing
}

// Proves reports whether the point is to be brought up.
func (v Verify) Proves() bool { return v.Prove == nil || *v.Prove }

// leastProof and mostProof bound how long a proof may take.
const leastProof, mostProof = Duration(30 * time.Minute), Duration(24 * time.Hour)

// Limit is how long a proof may take: until the next one is due, but half an hour at least, and a day at most.
func (v Verify) Limit() Duration { return min(max(v.Every, leastProof), mostProof) }

// Copy is how often points go to another site (replicate) or to a store that nobody can
// change (vault). It is read and checked; nothing acts on it yet, and [Template.Notes] says so.
type Copy struct {
	To    string   `json:"to,omitempty"`   // the name of the site or vault. Empty: the [Profile] of the application says it
	Every Duration `json:"every,omitzero"` // 0: after each capture
	Keep  Duration `json:"keep,omitzero"`  // how long they are kept there. 0: by keep
}

// Rank is the priority with its default.
func (t Template) Rank() int {
	if t.Priority == 0 {
		return 50
	}
	return t.Priority
}

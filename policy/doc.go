// Package policy answers what was promised to an application and what follows from it:
// when something is due, what may be forgotten, and whether the promise is kept.
//
// A [Template] is an SLA template. Its lines are policies: capture, keep, cdp, appshot, log,
// verify, replicate, vault, and the objectives RPO and RTO. A [Profile] says where to. Templates, profiles, and the applications, hosts
// and groups that are wanted, are written as YAML documents, which [Parse] reads
// and [Marshal] writes; names are the same in Go, YAML and JSON.
//
// These functions say what follows from a template, a [History] and an instant:
//
//   - [Next]: when each policy is due. Every so often, or at times of the day that are
//     kept in nights in which clocks are put forward or back; in windows; with back-off after failures; once after
//     downtime; and not all applications at once.
//   - [Keep]: which points may be forgotten, and for each of the others why not.
//   - [Judge]: the promised and measured RPO and RTO, and what is late, since when, and why. [Assess] is a part of it for
//     who asks often, and [Turn] says when to ask again.
//
// The package does nothing: it has no clock, no state and no I/O, but that a time zone is
// loaded when it is first named. The same question has the same answer, on every
// machine, and everything here may be called from many goroutines. Who asks, and does what the answer says, is control.
//
// Start with template.go, then next.go and calendar.go.
// DESIGN.md has the invariants, docs/sla.md tells users of the format.
package policy

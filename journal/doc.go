// Package journal keeps every write of a timeline, in order, with its time.
//
// A journal is an append-only log in segment files of fixed size. A [Record]
// says when which bytes of which disk were written, and holds the bytes, or
// the names of chunks that rest in the pool; bookmarks are records too. The
// format is in docs/format/journal.md, the reasons for it in DESIGN.md.
//
// Segments that are rarely read may move to an [Archive], and are read back from there.
//
// The promise: after [Journal.Sync] returned, every record appended before it
// survives a power cut, in order, or its loss is reported; never is it silently
// absent. What was not synced may be lost from some record on, all of it.
//
// Start with [Open], [Journal.Append], [Journal.Sync] and [Journal.Scan]. All
// methods may be called concurrently. Append takes no memory of its own and
// does no I/O but for every MiB or so; Sync serves all who wait by one write
// and one fdatasync.
package journal

// Package tap puts a disk in front of another, the primary, and gives every write that the primary
// has taken to a timeline, in order, without the writer ever waiting for that.
//
// # The promise
//
// The primary is always whole by itself: the same bytes, in the same places, that were written, with or without a
// tap. A write is answered when the primary has it. The timeline follows, some milliseconds behind, through a bounded
// queue in memory and then on disk ([capture.Sink]). When the queue is full, or the timeline is away for
// longer than it lasts, the tap notes which regions of the disk the timeline lacks, and nothing else. When the timeline
// is back, these regions are read from the primary and sent, while writes go on; the time in between is a gap
// in which no point can be had, and is shown as such.
//
// # What the timeline lacks is always known
//
// A region is marked dirty before it is written and until the timeline has it durably. The marks
// are in a file that is mapped into memory: a tap that is killed leaves them behind. For a power cut they
// are not quick enough; there, a second, coarse map says, durably and before the first write, which stretches of the
// disk are being written at all ([extentSize]), and all of those are sent again. A tap whose notes are
// missing or damaged sends the whole disk. DESIGN.md has the invariants.
//
// A [Tap] is for the disks of one timeline, which share one order of writes. [Disk] is a [block.Device].
package tap

// Package relay keeps a disk of an NBD server usable while the server dies and
// comes back, and shows it to this kernel as the one file of a FUSE file system.
//
// # The promise
//
// A request that the kernel has handed to us is answered exactly once, with the
// server's answer, however often the connection breaks in between. A flush that
// was answered with success covers every write that was answered before the
// flush was asked for, even if the server was killed between the two.
//
// # How
//
// A [Relay] owns some lanes. A lane is one NBD connection: a side that sends
// (the readers of /dev/fuse) and one goroutine that takes replies and answers
// the kernel straight out of its receive buffer. Every request in flight has a
// slot in its lane; every write that is not known to be durable has an entry in
// the [replayLog], with its bytes. When any connection fails, all are closed and
// opened anew, the log is replayed in the order in which the kernel sent it, then
// flushed, then reads are asked again, and only then the lanes open.
//
// Start with relay.go (the life of a session), then lane.go (the life of one
// request), then log.go. DESIGN.md in the parent directory says why.
package relay

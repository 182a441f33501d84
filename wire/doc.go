// Package wire carries the changes of tapped disks from their host to the server that has their timeline.
//
// [Client] is a [capture.Sink] at the one end of a connection, [Serve] the other end. The protocol has frames
// with checksums, is sent without waiting, and is in docs/format/wire.md. On one host the data of changes need not be in the frames: they stay
// in memory of the source, which the server reads ([shared.Memory]). Between hosts they are compressed where that helps. All ways carry one stream, change by change. Who may connect is decided by who makes the
// connection and who accepts it.
package wire

// Package taps runs taps of the host's disks, each in a process of its own, and finds them again.
//
// Such a process ([Run]) has the primary disks of one application open, for itself alone. It serves each of them over
// NBD on a socket in its directory, and whoever attaches that gets the tapped disk; it gives every write on to
// the server through another socket, when there is a server ([capture/tap] says how). It goes on
// when the server ends, and when the tap itself is killed and started anew, whoever has its disks attached waits and goes on.
//
// [Start] starts one and [Find] finds one that runs; both give a [Tap].
package taps

// Package agent is Tidemark's process on a host: it mounts file systems, copies
// into staging disks, brings databases up and receives their logs.
//
// # Why it is a process of its own
//
// A server that reads or writes a disk which it serves itself cannot be killed:
// the thread that waits for the disk does not end before its I/O does, the I/O
// waits for an answer of the server, and a new server cannot begin while the old
// one holds its files. So the server only serves disks and keeps books, and
// whatever touches a mounted disk happens in an agent, which can wait for the
// next server like every other program on that host. The agent ends with its
// server: no two of them ever work on the same disks, see [Run].
//
// # How to use it
//
// A server makes an [Agent] with [New] and calls its methods; the process is
// started by the first call, and again if it has died. Each method does one thing
// on the host, and returns when it is done there. An error keeps its
// [tidemark.Kind], its hint and its errno.
//
// DESIGN.md has the messages and the rules.
package agent

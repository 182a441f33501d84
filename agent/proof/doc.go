// Package proof finds out whether a point can be recovered: it brings it up in a sandbox of the host, checks it, and lets the user's
// probe look at it.
//
// # The sandbox
//
// A sandbox is one process with all that it starts, in namespaces of its own. Its network has a loopback device and nothing else. Its root is a new one: the host's programs
// and configuration, read-only, a /dev with the disks of the point, and empty directories for all else. So no socket, disk or file of production has a name there, and
// no process of production a number. What the point's own configuration wants does not matter.
//
// # Its end
//
// The first process of the sandbox dies with the thread that started it, and with the end of its standard input; the kernel then kills all others, and
// takes the file systems and devices of the sandbox away that nobody else has. That is all of the cleaning up: there is none that a kill -9 could prevent. The disks themselves were attached
// by our caller, who detaches them when the kernel has let go of them, which may be a moment later.
//
// Begin with [Run]; [Inside] is what runs in there.
package proof

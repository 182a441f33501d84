// Package mount gives a disk that an NBD server exports to this host, as a block
// device that outlives the server.
//
// # The promise
//
// An attached disk goes on when its server is killed, restarted or upgraded. Its
// I/O waits meanwhile; nothing fails, and nothing that an fsync had covered is
// lost, nor anything that was merely written. What makes this so is a small
// process of its own, the attacher, which holds every write that the server may
// still forget and sends it again to the server's successor.
//
// # Where to start
//
// [Attach] starts an attacher and returns when the block device is there; a [Launcher] has one
// started before it is needed;
// [List] finds attachments again after a restart of the caller; [Attachment]
// asks for status, detaches, and cleans up after an attacher that was killed.
// [RunAttacher] is what the attacher's process runs. [MountFS], [Unmount],
// [Format], [Freeze], [Thaw] and [DetectFS] deal with the file system on a device.
//
// DESIGN.md says what is acknowledged when, why a replay is safe, and which
// deadlocks of FUSE are avoided how; docs/mount.md is for operators.
//
// The device is one of the kernel's nbd driver where there is one, otherwise a loop
// device over a file of FUSE: see [Via]. Everything here needs root, and Linux 5.14 with
// nbd or Linux 5.8 with FUSE and loop devices.
package mount

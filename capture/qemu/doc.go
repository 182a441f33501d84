// Package qemu lets a timeline follow the disk of a running QEMU machine, with nothing installed in
// the guest: a [Mirror] has QEMU send every write of the guest on, over NBD, before the guest is
// told that it is done.
//
// The guest never fails because of it, and waits for no more than the journal's answer: whatever goes
// wrong on our side ends QEMU's job, and the machine goes on as if there were none. What was missed
// meanwhile is known to dirty bitmaps of QEMU, and is read back when we return.
//
// Begin with [Find], which looks at a machine, and [Mirror].
package qemu

// Package delta provides what brings a staging directory up to date with a tree
// on another host, over a connection that may be thin and far.
//
// [Send] runs where the tree is, [Receive] where the staging directory is. The sender
// walks the tree and tells what is in it; the receiver compares that with what is
// staged, and asks for the files that are not proven unchanged by their dates. With the
// question it sends fingerprints of the staged blocks, so that the answer is those
// blocks of 4 KiB that differ, and nothing else. Where nothing is staged, the sender
// offers chunks by the name of their content, and sends those that the receiver does not
// find in what is staged of the same host. Everything is under way at
// once, in both directions, each as one compressed stream: what a round trip takes
// is paid a few times for a capture, not for each file.
//
// What was cut is begun again, and goes on from what is staged by then: the blocks that
// have arrived have the fingerprints of those that would be sent.
//
// The receiver trusts the sender with the content of its own tree and with nothing
// else: names, links, numbers and lengths may be made by an enemy. The sender can
// learn fingerprints of what was staged of its tree, and what is staged of its host; nothing of any other. See DESIGN.md.
package delta

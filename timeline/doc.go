// Package timeline keeps an application's past, whole: every write to its
// disks, and any point of it as a disk.
//
// A [Timeline] joins a journal, which holds the recent writes in order, with
// images, which hold older states. Its [Disk] heads are written like any disk.
// [Timeline.Bookmark] marks a point without copying, [Timeline.Fold] turns what the
// journal holds into the next image, [Timeline.At] opens any point read-only, and
// [Timeline.Branch] begins a writable timeline from any point, at a cost that
// depends neither on the size of the disks nor on the length of the history.
//
// The promise: for every retained point, At returns exactly the bytes that the
// disks held. Points, parents and branches can be expired in any order; what others still
// need stays. DESIGN.md has the invariants and why they hold; a [Set] is where
// to begin.
package timeline

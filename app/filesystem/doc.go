// Package filesystem provides the staging of a directory tree: bringing a copy
// of it up to date in place, and giving a copy back.
//
// [Sync] makes staging/data equal to a tree. Files that are proven unchanged are
// not read (see DESIGN.md for the proof), of the others only differing 4 KiB
// blocks are written, so that the disk below changes as little as the tree did.
// Owners, modes, times, extended attributes (and so ACLs and capabilities), hard
// links, symbolic links, holes, fifos and device nodes are kept.
//
// [Restore] is the way back. The tree it reads may have been made by an enemy,
// and so may the directory it writes into: every step goes through os.Root, so
// nothing outside of either is read or written, whatever links they hold.
package filesystem

// Package residue finds sensitive values on disks after they were masked, and removes what a masked PostgreSQL still holds of them.
//
// A clone that is masked by SQL is not clean. An UPDATE leaves the old row in its page; VACUUM leaves the bytes in the page's free space;
// the old value is in indexes, in the statistics of the planner, in WAL, in the server's log, in the blocks of files that were removed
// and in the file system's journal. Who gets the clone as a disk gets all that.
//
// # Fingerprints
//
// [Fingerprints] are made from the values by a [Builder], once, where the values still are: a line each, or one by one as they come from a
// SELECT. No value is kept. What is kept is a keyed hash of each in each encoding, and a hash of a window of it by which a scan notices
// it. The [Key] is apart from the file. See DESIGN.md beside this file for what a thief of the one or of both learns.
//
// # Scan
//
// [Scan] reads all of a disk that is not a hole, in parallel, and reports a [Finding] for each place where a value is. It looks into what PostgreSQL
// (13 to 17) compresses or cuts into pieces: compressed values, TOAST values, page images in WAL. It needs no page, tuple or file to be
// whole or in use for that. Publish only what is [Result.Clean], of every disk and, because a file system may keep a value in two blocks that lie far
// apart, of the files too ([OpenFiles]):
//
//	res, err := residue.Scan(ctx, disk, prints, residue.Options{Disk: "data"}, func(f residue.Finding) bool {
//		log.Print(f.Value, f.Offset, f.Place) // the value's number, never the value
//		return true
//	})
//
// [NewFileMap] and [Files] say what lies at an offset: relation and page, segment of WAL, another file, or none.
//
// # Preparation
//
// [Prepare] takes a masked clone of PostgreSQL to where a scan finds nothing: it writes all tables anew, replaces WAL, logs and the file system's
// journal, and discards free space. [ClearFiles] does the last two for a tree of files. They prove nothing. The scan does.
package residue

// Package image stores the full content of disks, each byte of it once: it is
// the content-addressed, deduplicated and compressed store that images live in.
//
// A disk is cut into chunks of equal size. A chunk is named by the SHA-256 of
// its bytes, a list of 256 names by the SHA-256 of the list, and so on up to one
// name that stands for the whole disk: a [Root]. Equal content has equal roots,
// a new image costs as much as it changed, and two images are compared without
// looking at what they share. Zeros have the zero [Name] and take no space.
//
// Writers hold a [Session]:
//
//	x := store.Begin()
//	defer x.End()
//	name, err := x.Put(content, previousName)            // any number, concurrently
//	root, err := x.Commit(base, []image.Change{{Index: 7, Name: name}})
//	err = store.Sync()                                   // durable from here on
//	// … now write root down somewhere durable, then End.
//
// Readers ask for a [View], which is a [tidemark/block.Reader].
//
// # The promise
//
// After [Store.Sync] returned nil, everything put before can be read back until
// it is reclaimed, whatever happens to the machine. What cannot be read back
// is reported as a [CorruptError] that names the place; wrong bytes are never
// returned. [Store.Reclaim] gives back only what no root, name or session needs.
//
// # Inside
//
// Chunks and tree nodes are records (record.go, codec.go, patch.go) in packs
// (pack.go, footer.go), append-only files that move into the bucket when they are full (seal.go).
// An index (index.go) finds a record by its name; it is a cache and can be deleted. The tree is in
// tree.go and commit.go, reading in view.go and cache.go, the scrub in check.go, giving
// space back in reclaim.go. Formats: docs/format/pack.md and tree.md; reasons: DESIGN.md.
package image

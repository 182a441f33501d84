// Package tidemark is the vocabulary of Tidemark: the nouns that every other
// package, the API, the command line and the user speak of. Read this package
// and you know every word.
//
// An [Application] is the unit of protection; its [Timeline] is everything its
// disks have ever been. A [Point] is a position on a timeline; a bookmark is a
// point that somebody named or vouched for, with a [Consistency]. An image is
// the content of one disk at one point. A [Mount] shows a point to a host as a
// disk; a [Clone] is a thin writable copy, which is a timeline of its own that
// branches from a point of another. Long work is a [Job].
//
// The types here carry facts and rules of syntax, and no behaviour: they import
// nothing of Tidemark. Those with JSON tags are the wire form of the API and of
// the command line's --json.
package tidemark

// Version is the version of this build, set by the linker for releases.
var Version = "0.1.0-dev"

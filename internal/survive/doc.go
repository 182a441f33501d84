// Package survive provides the proof of what a Tidemark server must survive: it
// has tests only. They run the real binary on a real data directory and take
// something away from it: the process (kill -9 in the middle of every job), a
// bit of any file it keeps, the room on its disk, or production itself. Then
// they check that nothing acknowledged is lost, that every error names what is
// affected, and that the next use works.
//
// The tests need root and the tools of scripts/install-test-deps. Where these
// are missing, the tests are skipped, but not where CI is set. TIDEMARK_LONG=1
// runs fifty rounds of kills instead of six; TIDEMARK_SEED repeats a run.
package survive

// Package survive provides the proof of what a Tidemark server must survive: it
// has tests only. They run the real binary on a real data directory and take
// something away from it: the process (kill -9 in the middle of every job), a
// bit of any file it keeps, the room on its disk, or production itself. Then
// they check that nothing acknowledged is lost, that every error names what is
// affected, and that the next use works.
//
// Another part asks whether what a tapped disk was at any moment is told truly.
// There a tap and a timeline run in the process of the test (rig), so that it
// can stand between them: a witness notes what production asked and was told,
// and a ledger what came through the wire. Points are held to both.
//
// The tests need root and the tools of scripts/install-test-deps. Where these
// are missing, the tests are skipped, but not where CI is set. TIDEMARK_LONG=1
// runs fifty rounds of kills instead of one for each act, a hundred of each
// queue instead of six, and looks at thousands of points instead of hundreds;
// TIDEMARK_SEED repeats a run.
//
// Most tests wait more than they compute, and run beside others (beside): each
// has a stage of its own, and counts only what is that stage's.
package survive

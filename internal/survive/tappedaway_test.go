package survive

import (
	"syscall"
	"testing"
	"time"

	"tidemark"
)

// TestTappedWithCatalogAway takes the catalog's database away from a server while production writes through a tap: production sees no error, the
// timeline goes on following, and lacks nothing afterwards.
func TestTappedWithCatalogAway(t *testing.T) {
	beside(t)
	need(t, "fio", program("postgres"))
	s := newStage(t)
	db := catalogs[1].place(s)
	x := newTappingIn(s, "6G", 64<<20, func(string) {})
	x.same()
	before := len(ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps)
	for i, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGINT} {
		db.stop(sig)
		x.refused([]string{"the catalog's database does not answer"}, "jobs")
		if err := x.startWriter(i).wait(); err != nil {
			t.Fatalf("production was disturbed: %v", err)
		}
		x.taken()
		db.start()
		x.runs("jobs")
		x.same()
	}
	if gaps := ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps; len(gaps) != before {
		t.Errorf("%d gaps, and %d before: %+v", len(gaps), before, gaps)
	}
	x.run("unprotect", "prod")
}

// taken waits until the server has taken all that the tap has for it, and asks nobody but the tap.
func (x *tapping) taken() {
	x.t.Helper()
	var last string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		st, err := x.tap().Status(x.t.Context())
		if err != nil {
			x.t.Fatal(err)
		}
		if st.Online && st.Queued == 0 && st.Lost == 0 && !st.Gap {
			return
		}
		last = st.Trouble
	}
	x.t.Fatalf("the server does not take what is written: %s", last)
}

// runs waits until a verb that asks the catalog works again.
func (s *stage) runs(verb ...string) {
	s.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err = s.try(verb...); err == nil {
			return
		}
	}
	s.t.Fatalf("verbs do not work again: %v", err)
}

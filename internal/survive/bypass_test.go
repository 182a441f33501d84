package survive

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// TestWrittenPastTheTap writes to a primary itself. That is told within the time in which all of the disk is compared, and mended.
func TestWrittenPastTheTap(t *testing.T) {
	beside(t)
	need(t)
	x := newTapping(t, 1<<20, func(string) {}, "--window", "1h")
	f, err := os.OpenFile(x.disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("past the tap "), 1000), 300<<10); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	told := func() bool {
		for _, e := range ask[tidemark.Status](x.stage, "status").Events {
			if e.Level == "error" && strings.Contains(e.Message, "written past its tap") {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(time.Minute); !told(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody noticed: %s", x.run("status"))
		}
	}
	x.same()
	gaps := ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps
	if len(gaps) != 2 || !strings.Contains(gaps[1].Reason, "written past its tap") || gaps[1].To.IsZero() {
		t.Errorf("the gaps are %+v", gaps)
	}
	x.run("unprotect", "prod")
}

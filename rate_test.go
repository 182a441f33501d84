package tidemark

import "testing"

func TestParseRate(t *testing.T) {
	for s, want := range map[string]int64{"none": 0, "20Mbit": 20e6, " 1 gbit ": 1e9, "64kbit": 64e3, "100000bit": 1e5, "1500kbit": 15e5, "1000Gbit": 1e12} {
		got, err := ParseRate(s)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
		if again, err := ParseRate(FormatRate(got)); err != nil || again != got {
			t.Errorf("%q is printed as %q", s, FormatRate(got))
		}
	}
	for _, s := range []string{"", "0", "0Mbit", "20", "20MB", "Mbit", "-1Mbit", "1kbit", "1.5Gbit", "1001Gbit", "99999999999999999999Gbit", "18446744073709551615Gbit"} {
		if n, err := ParseRate(s); KindOf(err) != Invalid {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
}

func FuzzRate(f *testing.F) {
	f.Add("20Mbit")
	f.Add("none")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseRate(s)
		if err != nil {
			return
		}
		if again, err := ParseRate(FormatRate(n)); err != nil || again != n {
			t.Errorf("%q became %q: %v", s, FormatRate(n), err)
		}
	})
}

package tidemark

import (
	"testing"
	"time"
)

// A reference that is read prints as one that reads the same.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"a", "a@", "a@latest", "a@#0", "a@#18446744073709551615", "a@-5m", "a@-1h30m0.5s", "a@2026-11-23T02:41:07Z", "a@2026-11-23 02:41", "a@2026-11-23",
		"a@b.c-d_1", "a@@", "@a", "a@-0s", "a@--5m", "a@#-1", "a@9999-12-31T23:59:59.999999999Z", "a@2026-03-29T02:30", "é@x", "a@\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if KindOf(err) != Invalid {
				t.Errorf("%q: an error of kind %s: %v", s, KindOf(err), err)
			}
			return
		}
		again, err := ParseRef(r.String())
		if err != nil {
			t.Fatalf("%q is printed as %q, which cannot be read: %v", s, r.String(), err)
		}
		if again.App != r.App || !again.Point.Time.Equal(r.Point.Time) || again.Point.Ago != r.Point.Ago || again.Point.Bookmark != r.Point.Bookmark ||
			again.Point.Position != r.Point.Position || again.Point.Latest() != r.Point.Latest() || again.Point.IsPosition() != r.Point.IsPosition() {
			t.Errorf("%q is %+v, and printed as %q it is %+v", s, r, r.String(), again)
		}
		if when, ok := r.Point.When(time.Now()); ok && when.IsZero() {
			t.Errorf("%q is at no time", s)
		}
	})
}

// A size that is read is not negative, and prints without a panic.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "1", "512", "10GiB", "1.5TiB", "9223372036854775807", "9223372036854775808", "-1", "1e3", "0x10", "16 EiB", "KiB", "1kb", ".5MiB", "\t1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			if KindOf(err) != Invalid {
				t.Errorf("%q: an error of kind %s: %v", s, KindOf(err), err)
			}
			return
		}
		if n < 0 {
			t.Errorf("%q is %d bytes", s, n)
		}
		FormatSize(n)
	})
}

// Whatever can name a new bookmark is read as that bookmark, and of names nothing else is refused.
func FuzzCheckBookmark(f *testing.F) {
	for _, s := range []string{"a", "latest", "Latest", "2026-01-01", "2026-1-1", "1970-01-01", "1971-01-01", "2026-01-01T10", "20260101", "c20260101-101010.000", "-5m", "#1", "5m", "", "a@b", "9999-12-31"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, perr := ParsePoint(s)
		is := CheckName(s) == nil && perr == nil && p == Point{Bookmark: s}
		err := CheckBookmark(s)
		if is != (err == nil) {
			t.Errorf("%q is read as %+v, %v, and as the name of a bookmark: %v", s, p, perr, err)
		}
		if err != nil && KindOf(err) != Invalid {
			t.Errorf("%q: an error of kind %s: %v", s, KindOf(err), err)
		}
	})
}

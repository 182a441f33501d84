package tidemark

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzPostURL: what is accepted can be posted to, by nobody's name, and its host alone is told without what is behind it.
func FuzzPostURL(f *testing.F) {
	for _, s := range []string{"https://example.com/T0/B0/secret?x=y", "http://[::1]:8080", "http://u:p@x/", "ftp://x/", "https://", "https://:80/", "http://x:99999/", "", "%", "https://x/\n", "HTTPS://x#f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := CheckPostURL(s); err != nil {
			if KindOf(err) != Invalid || len(s) > 40 && strings.Contains(err.Error(), s) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		r, err := http.NewRequest(http.MethodPost, s, nil)
		if err != nil || r.URL.User != nil || r.URL.Host == "" || r.URL.Scheme != "http" && r.URL.Scheme != "https" {
			t.Fatalf("%q is accepted: %v", s, err)
		}
		host := OnlyHost(s)
		if rest := strings.TrimPrefix(host, r.URL.Scheme+"://"+r.URL.Host); rest != "" && rest != "/…" || rest == host {
			t.Errorf("%q is told as %q", s, host)
		}
	})
}

func TestPostURL(t *testing.T) {
	for s, want := range map[string]string{"https://example.com/T0/secret": "https://example.com/…", "http://x:80?key=1": "http://x:80/…", "https://x": "https://x", "https://x/": "https://x", "http://[::1]:8080/a": "http://[::1]:8080/…"} {
		if err := CheckPostURL(s); err != nil || OnlyHost(s) != want {
			t.Errorf("%s is %s: %v", s, OnlyHost(s), err)
		}
	}
	for _, s := range []string{"", "x", "/x", "ftp://x/", "https://", "https://:80/", "https://x:70000/", "https://x:-1/", "https://u@x/", "https://u:p@x/", "https://x/\n", "https://x/" + strings.Repeat("a", maxPostURL)} {
		if CheckPostURL(s) == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

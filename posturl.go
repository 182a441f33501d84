package tidemark

import (
	"net/url"
	"strconv"
	"strings"
)

// maxPostURL is how long a URL may be that is posted to, in bytes.
const maxPostURL = 2048

// CheckPostURL returns an error of kind [Invalid] unless messages can be posted to s: an http or https URL with a host and without
// a user or password, that is not what [OnlyHost] has left of one. The error does not repeat s, whose path may be a secret.
func CheckPostURL(s string) error {
	u, err := url.Parse(s)
	ok := err == nil && !strings.Contains(s, "…") && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil && len(s) <= maxPostURL
	if ok && u.Port() != "" {
		_, err := strconv.ParseUint(u.Port(), 10, 16)
		ok = err == nil
	}
	if !ok {
		return Errorf(Invalid, "it is no URL that can be posted to").WithHint("write https://HOST/PATH, and no password")
	}
	return nil
}

// OnlyHost is a URL without its path and all behind, which may be a secret.
func OnlyHost(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return ""
	}
	host := u.Scheme + "://" + strings.TrimSuffix(u.Host, ":") // a port that is empty is none
	if rest := u.RequestURI(); rest != "/" {
		return host + "/…"
	}
	return host
}

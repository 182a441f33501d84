package api

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidemark"
	"tidemark/access/oidc"
	"tidemark/access/oidc/oidctest"
)

// TestDeviceShares: who begins logins from one address, and ends none, keeps nobody of another one from it.
func TestDeviceShares(t *testing.T) {
	x, idp := newRig(t), oidctest.Start(t)
	p, err := oidc.New(oidc.Config{Issuer: idp.Issuer, ClientID: "device", ClientSecret: oidctest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	_, h := Handlers(x.c, slog.New(slog.DiscardHandler), p)
	post := func(from, path, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.RemoteAddr = from + ":4711"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	begin := func(from string) (d tidemark.DeviceLogin, code int) {
		t.Helper()
		w := post(from, "/v1/login/device", "")
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		return d, w.Code
	}
	const thief, other = "192.0.2.7", "192.0.2.8"
	var last tidemark.DeviceLogin
	begun := 0
	for range mostDevices {
		if d, code := begin(thief); code == http.StatusOK {
			last, begun = d, begun+1
		} else if code != http.StatusServiceUnavailable {
			t.Fatal(code)
		}
	}
	if begun != devicesPerAddress {
		t.Errorf("%d logins of one address are on their way", begun)
	}
	if _, code := begin(other); code != http.StatusOK {
		t.Errorf("somebody else cannot log in: %d", code)
	}
	idp.TypeIn(t, last.Code, "denied")
	if w := post(thief, "/v1/login/device/finish", `{"login":"`+last.Login+`"}`); w.Code != http.StatusForbidden {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if _, code := begin(thief); code != http.StatusOK {
		t.Errorf("one has ended, and another cannot begin: %d", code)
	}
	if _, code := begin(thief); code != http.StatusServiceUnavailable {
		t.Errorf("one has ended, and two have begun: %d", code)
	}
}

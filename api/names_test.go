package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// TestFreedNamesTellNothing: who gives a clone the name that a copy of another application had is told nothing of that one, as long as it was
// there, nor by what wait for it; of his own he is told all, and who may see all is told all.
func TestFreedNamesTellNothing(t *testing.T) {
	x := newRig(t)
	x.applications("orders", "payroll")
	works := worksIn(t)
	h := outside(x)
	bob, carol := x.person("bob", developer("orders")), x.person("carol", developer("payroll"))
	owner := x.person("olga", access.Grant{Role: access.Owner, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"orders"}}})
	admin := x.person("adam", access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
	jobs, events := func(secret string) string { return as(h, secret, http.MethodGet, "/v1/jobs", "").Body.String() }, func(secret string) string {
		return as(h, secret, http.MethodGet, "/v1/events", "").Body.String()
	}
	does := func(j tidemark.Job, err error) {
		t.Helper()
		works(err)
		works(x.Wait(t.Context(), j.ID, nil, nil))
	}
	used := func(bookmark string) {
		t.Helper()
		does(x.c.Capture(t.Context(), tidemark.CaptureSpec{Application: "pay-dev", Bookmark: bookmark}))
		does(x.c.Rewind(t.Context(), tidemark.RewindSpec{Ref: "pay-dev@" + bookmark}))
		does(x.c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "pay-dev"}))
	}

	x.clone("", tidemark.CloneSpec{Ref: "payroll@one", Name: "pay-dev"})
	used("salaries")
	how := control.Ask{Queue: true, NotBefore: time.Now().Add(time.Hour)}
	_, err := x.c.Refresh(control.WithAsk(t.Context(), how), tidemark.RefreshSpec{Name: "pay-dev"})
	works(err)
	const named, job = `"application":"pay-dev"`, `"application":"pay-dev","host"` // the latter not of a result
	was := jobs(carol)
	if strings.Count(was, job) != 5 || !strings.Contains(was, "salaries") || !strings.Contains(events(carol), named) || strings.Contains(jobs(bob)+events(bob), named) {
		t.Fatalf("before: %s\n%s", was, events(carol))
	}
	works(x.RemoveClone(t.Context(), "pay-dev"))
	if now := jobs(carol); strings.Count(now, job) != 5 {
		t.Errorf("when it is removed: %s; and not %s", now, was)
	}
	x.begun(post(h, "/v1/clones", `{"ref":"orders@one","name":"pay-dev"}`, bob))
	for who, secret := range map[string]string{"bob": bob, "an owner": owner} {
		if all := jobs(secret) + events(secret); strings.Contains(all, "salaries") || strings.Contains(all, "payroll") || strings.Count(all, named) != 1 {
			t.Errorf("%s is told: %s\n%s", who, jobs(secret), events(secret))
		}
	}
	if now := jobs(carol); strings.Count(now, job) != 5 {
		t.Errorf("who has rights over payroll is told: %s; and not %s", now, was)
	}
	used("prices")
	if all := jobs(bob); !strings.Contains(all, "prices") || strings.Count(all, job) != 4 || !strings.Contains(events(bob), named) {
		t.Errorf("of his own he is told: %s\n%s", all, events(bob))
	}
	if all := jobs(admin); !strings.Contains(all, "salaries") || strings.Count(all, job) != 9 || strings.Count(events(admin), named) <= strings.Count(events(bob), named) {
		t.Errorf("an administrator is told: %s\n%s", all, events(admin))
	}
}

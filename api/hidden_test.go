package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// TestNoWayByRewind: how to reach a clone is in what a rewind of it ended in, for those alone who may use it.
func TestNoWayByRewind(t *testing.T) {
	x := newRig(t)
	x.applications("testapp")
	h := outside(x)
	auditor := x.person("eve", access.Grant{Role: access.Auditor, Scope: access.Scope{Kind: access.Everything}})
	owner := x.person("carol", access.Grant{Role: access.Owner, Scope: access.Scope{Kind: access.Everything}})
	x.clone("carol", tidemark.CloneSpec{Ref: "testapp@one", Name: "k"})
	if _, err := x.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "k", Name: "two"}); err != nil {
		t.Fatal(err)
	}
	j, err := x.Rewind(t.Context(), tidemark.RewindSpec{Ref: "k@two"})
	done, err := client.Result[tidemark.Rewound](t.Context(), x.Client, j, err, nil)
	if err != nil || done.Connection == "" {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, path := range []string{"/v1/jobs", jobPath(j.ID), "/v1/status"} {
		for secret, want := range map[string]bool{auditor: false, owner: true} {
			w := as(h, secret, http.MethodGet, path, "")
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"rewind"`) || strings.Contains(w.Body.String(), done.Connection) != want {
				t.Errorf("%s, may use it: %v: %d: %s", path, want, w.Code, w.Body)
			}
		}
	}
}

// TestSeenOnHost: of what is on a host, one is told what he may see.
func TestSeenOnHost(t *testing.T) {
	x := newRig(t)
	x.applications("testapp", "payroll")
	alice := access.Principal{User: "alice", Method: access.ByPassword}
	x.person("alice")
	x.person("bob")
	x.clone("alice", tidemark.CloneSpec{Ref: "testapp@one", Name: "mine"})
	x.clone("bob", tidemark.CloneSpec{Ref: "testapp@one", Name: "his"})
	x.clone("", tidemark.CloneSpec{Ref: "payroll@one", Name: "secret"})
	g := developer("testapp")
	g.ID, g.Subject = 1, access.Subject{Kind: access.User, Name: "alice"}
	all := tidemark.Host{Name: "h", Applications: []string{"payroll", "testapp"}, Shown: []string{"gone", "his", "mine", "secret"}}
	for _, y := range []struct {
		who    *caller
		apps   []string
		copies []string
	}{
		{&caller{principal: access.Principal{Method: access.BySocket}}, all.Applications, all.Shown},
		{&caller{principal: alice, grants: []access.Grant{g}}, []string{"testapp"}, []string{"mine"}},
		{&caller{principal: alice}, []string{}, []string{}},
	} {
		got := all
		if err := seenOnHost(context.WithValue(t.Context(), callerKey{}, y.who), x.c, &got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Applications, y.apps) || !slices.Equal(got.Shown, y.copies) || got.Applications == nil || got.Shown == nil {
			t.Errorf("%s is shown %+v", y.who.principal, got)
		}
	}
}

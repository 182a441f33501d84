package api

import (
	"context"
	"log/slog"
	"testing"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// workflows asks for all that is done with workflows, of a server with a volume v.
func workflows(t *testing.T, x *client.Client, works func(error), refuses func(tidemark.Kind, error)) {
	ctx := context.Background()
	text := "kind: Workflow\nname: w\nparameters: [{name: mark, type: name}]\nsteps:\n  - bookmark: {app: v, name: \"{{ mark }}\"}\n  - expire: {app: v, points: \"{{ mark }}\", keep: 1}\n"
	w, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text})
	works(err)
	if w.Version != 1 || len(w.Parameters) != 1 || w.Parameters[0].Default != nil {
		t.Errorf("%+v", w)
	}
	_, err = x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text + "  - capture: {all: true}\n"})
	refuses(tidemark.Invalid, err)
	again, err := x.Workflow(ctx, "w", 1)
	works(err)
	if again.Document != text {
		t.Errorf("%q", again.Document)
	}
	spec := tidemark.RunSpec{Parameters: map[string]string{"mark": "two"}}
	plan, err := x.PlanWorkflow(ctx, "w", spec)
	works(err)
	if len(plan.Steps) != 2 || plan.Job != nil || plan.Steps[0].Does != "bookmark v as two" {
		t.Errorf("%+v", plan)
	}
	_, err = x.RunWorkflow(ctx, "w", tidemark.RunSpec{})
	refuses(tidemark.Invalid, err)
	j, err := x.RunWorkflow(ctx, "w", spec)
	done, err := client.Result[tidemark.RunResult](ctx, x, j, err, nil)
	works(err)
	if done.Steps != 2 || done.Version != 1 {
		t.Errorf("%+v", done)
	}
	runs, err := client.Collect(x.Runs(ctx, "w"))
	works(err)
	if len(runs) != 1 || runs[0].Job.ID != j.ID {
		t.Errorf("%+v", runs)
	}
	r, err := x.Run(ctx, j.ID)
	works(err)
	if len(r.Steps) != 2 || r.Steps[1].State != "done" || r.Steps[0].Result == nil {
		t.Errorf("%+v", r)
	}
	_, err = x.Run(ctx, 1<<40)
	refuses(tidemark.NotFound, err)
	works(x.RemoveWorkflow(ctx, "w"))
	refuses(tidemark.NotFound, x.RemoveWorkflow(ctx, "w"))
}

// Who runs a workflow has to be allowed to do so on what its steps are about, and what they do, by a token as well. A dry run says the same.
func TestRunByRights(t *testing.T) {
	x := newRig(t)
	ctx := t.Context()
	if _, err := x.CreateVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "pub"}); err != nil {
		t.Fatal(err)
	}
	text := "kind: Workflow\nname: w\nsteps:\n  - clone: {source: v@pub, name: k}\n  - bookmark: {app: k, name: x}\n"
	if _, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text}); err != nil {
		t.Fatal(err)
	}
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	grant := func(r access.Role, names ...access.Pattern) access.Grant {
		g := access.Grant{ID: 1, Subject: access.Subject{Kind: access.User, Name: "ann"}, Role: r, Scope: access.Scope{Kind: access.Applications, Names: names}}
		if r.Limited() {
			g.Limits = access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Bookmarks: []access.Pattern{"pub"}}}
		}
		return g
	}
	user := access.Principal{User: "ann", Method: access.ByPassword}
	token := func(narrowed access.Token) access.Principal {
		narrowed.ID, narrowed.User = 1, "ann"
		return access.Principal{User: "ann", Method: access.ByToken, Token: &narrowed}
	}
	for what, want := range map[string]struct {
		who     access.Principal
		grants  []access.Grant
		allowed bool
	}{
		"the socket":          {access.Principal{Method: access.BySocket}, nil, true},
		"nobody":              {access.Principal{}, nil, false},
		"no grant":            {user, nil, false},
		"a developer":         {user, []access.Grant{grant(access.Developer, "v")}, true},
		"of something else":   {user, []access.Grant{grant(access.Developer, "w")}, false},
		"an auditor":          {user, []access.Grant{grant(access.Auditor, "v")}, false},
		"a developer's token": {token(access.Token{}), []access.Grant{grant(access.Developer, "v")}, true},
		"one for it":          {token(access.Token{Applications: []access.Pattern{"v"}}), []access.Grant{grant(access.Developer, "*")}, true},
		"one for another":     {token(access.Token{Applications: []access.Pattern{"w"}}), []access.Grant{grant(access.Developer, "*")}, false},
		"one of an auditor":   {token(access.Token{Roles: []access.Role{access.Auditor}}), []access.Grant{grant(access.Developer, "*")}, false},
	} {
		who := &caller{principal: want.who, grants: want.grants}
		err := s.allowSteps(context.WithValue(ctx, callerKey{}, who), &ofNameAndMore[tidemark.RunSpec]{Name: "w"})
		if (err == nil) != want.allowed || err != nil && tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
}

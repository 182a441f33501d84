package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/timeline"
)

// thing is something of a server that requests are about, and what a decision about it depends on, written by hand.
type thing struct {
	kind  access.Kind
	name  string
	app   string   // the application whose data it has; of a clone, what it was made of; of a workflow, what its step is about
	owner string   // empty: nobody
	lent  bool     // to alice
	live  bool     // a LiveClone
	in    []string // the scopes that hold it, besides everything
	none  bool     // it is not there
}

// groupsOf are the groups of applications.
var groupsOf = map[string][]string{"orders": {"alone", "both"}, "secret": {"both", "hidden"}}

// The scopes that alice is given roles over. The limits of a developer have the hosts of the last one.
var scopes = map[string]access.Scope{
	"everything": {Kind: access.Everything},
	"orders":     {Kind: access.Applications, Names: []access.Pattern{"ord*"}},
	"hosts":      {Kind: access.Hosts, Names: []access.Pattern{access.ServerHost, "db1"}},
}

// Of what is on the server's own host, some is of the application orders.
var ofOrders, here = []string{"orders", "hosts"}, []string{"hosts"}

// theWorld has for each kind of object what is alice's, somebody else's and nobody's, of the application that she may have rights over
// and of another one. Jobs are added when they are there.
func theWorld() []thing {
	list := []thing{
		{kind: access.KindApplication, name: "orders", app: "orders", in: ofOrders},
		{kind: access.KindApplication, name: "secret", app: "secret", in: here},
		{kind: access.KindGroup, name: "alone", app: "orders", in: []string{"orders"}},
		{kind: access.KindGroup, name: "both", app: "orders"},
		{kind: access.KindGroup, name: "hidden", app: "secret"},
		{kind: access.KindHost, name: "db1", in: here},
		{kind: access.KindHost, name: "db2"},
		{kind: access.KindWorkflow, name: "w-mine", app: "orders"},
		{kind: access.KindWorkflow, name: "w-his", app: "orders"},
		{kind: access.KindWorkflow, name: "w-secret", app: "secret"},
		{kind: access.KindWorkflow, name: "w-copy", app: "k-mine"},
		{kind: access.KindWorkflow, name: "w-foreign", app: "k-his"},
		{kind: access.KindSLA, name: "gold"},
		{kind: access.KindWebhook, name: "ops"},
		{kind: access.KindToken, name: "alice", owner: "alice"},
		{kind: access.KindToken, name: "bob", owner: "bob"},
		{kind: access.KindAccess, name: "bob"}, {kind: access.KindAudit}, {kind: access.KindPool, name: "nothing"}, {kind: access.KindServer},
	}
	for prefix, k := range map[string]access.Kind{"k": access.KindClone, "l": access.KindClone, "e": access.KindExport, "m": access.KindMount} {
		live := prefix == "l"
		list = append(list,
			thing{kind: k, live: live, name: prefix + "-mine", app: "orders", owner: "alice", in: ofOrders},
			thing{kind: k, live: live, name: prefix + "-his", app: "orders", owner: "bob", in: ofOrders},
			thing{kind: k, live: live, name: prefix + "-ours", app: "orders", in: ofOrders},
			thing{kind: k, live: live, name: prefix + "-hidden", app: "secret", owner: "alice", in: here},
			thing{kind: k, live: live, name: prefix + "-foreign", app: "secret", owner: "bob", in: here})
	}
	list = append(list, thing{kind: access.KindClone, name: "k-lent", app: "orders", owner: "bob", lent: true, in: ofOrders})
	for _, k := range []access.Kind{access.KindClone, access.KindExport, access.KindMount, access.KindGroup, access.KindHost} {
		list = append(list, thing{kind: k, name: "nowhere", app: "nowhere", none: true})
	}
	return append(list, thing{kind: access.KindJob, name: "4711", none: true})
}

// mountable reports whether points can be made disks here.
func mountable() bool {
	_, err := os.Stat("/dev/fuse")
	return err == nil && os.Geteuid() == 0
}

// makeWorld makes it, and returns it with the jobs that this took, of which the runs of workflows go on.
func makeWorld(t *testing.T, x *rig) []thing {
	t.Helper()
	works := worksIn(t)
	x.applications("orders", "secret")
	groupsInto(t, x, groupsOf)
	x.person("alice")
	x.person("bob", access.Grant{Role: access.Admin, Scope: scopes["everything"]})
	world := slices.DeleteFunc(theWorld(), func(v thing) bool { return v.kind == access.KindMount && !mountable() })
	for i := range world {
		if !world[i].none {
			makeThing(t, x, &world[i])
		}
	}
	for _, v := range world {
		if v.kind == access.KindClone && !v.none { // of a volume: it is served
			v.kind, v.lent = access.KindExport, false
			world = append(world, v)
		}
	}
	_, err := x.c.Share(t.Context(), "k-lent", []access.Subject{{Kind: access.User, Name: "alice"}})
	works(err)
	for _, user := range []string{"", "alice"} {
		j, err := x.c.Reclaim(control.WithAsk(t.Context(), x.by(user)))
		works(err)
		works(x.Wait(t.Context(), j.ID, nil, nil))
	}
	g, err := x.AddGrant(t.Context(), access.Grant{Subject: access.Subject{Kind: access.User, Name: "alice"}, Role: access.Admin, Scope: scopes["everything"]})
	works(err)
	for name, user := range map[string]string{"w-mine": "alice", "w-his": "bob", "w-secret": "bob"} {
		x.slowRun(name, user)
	}
	works(x.RemoveGrant(t.Context(), g.ID))
	return append(world, jobThings(t, x, world)...)
}

func worksIn(t *testing.T) func(error) {
	return func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// makeThing makes what is not a volume or user. An export is named by the server.
func makeThing(t *testing.T, x *rig, v *thing) {
	t.Helper()
	works := worksIn(t)
	ctx := control.WithAsk(t.Context(), x.by(v.owner))
	var err error
	switch v.kind {
	case access.KindClone:
		spec := tidemark.CloneSpec{Ref: v.app + "@one", Name: v.name}
		if v.live {
			spec.Preparation = &tidemark.Preparation{}
		}
		x.clone(v.owner, spec)
	case access.KindExport:
		var e tidemark.Export
		e, err = x.c.Export(ctx, tidemark.ExportSpec{Ref: v.app + "@one"})
		v.name = e.Name
	case access.KindMount:
		_, err = x.c.Mount(ctx, tidemark.MountSpec{Ref: v.app + "@one", Name: v.name})
		name := v.name
		t.Cleanup(func() { // what attaches a disk outlives the server
			if err := x.c.Unmount(context.Background(), name); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
				t.Error(err)
			}
		})
	case access.KindHost:
		_, err = x.AddHost(ctx, tidemark.HostSpec{Name: v.name})
	case access.KindSLA:
		_, err = x.Apply(ctx, tidemark.ApplySpec{Documents: "kind: Template\nname: " + v.name + "\ncapture:\n  every: 1h\n---\nkind: Profile\nname: " + v.name + "\njobs: 4\n"})
	case access.KindWebhook:
		_, err = x.AddWebhook(ctx, tidemark.WebhookSpec{Name: v.name, URL: "https://example.com/hook", Off: true})
	case access.KindWorkflow:
		text := fmt.Sprintf("kind: Workflow\nname: %s\nsteps:\n  - bookmark: {app: %s, name: \"run-{{ run }}\"}\n  - script: {name: slow}\n", v.name, v.app)
		x.script("slow", "#!/bin/sh\nexec sleep 600\n")
		_, err = x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text})
	}
	works(err)
}

// script puts a program where workflows find it.
func (x *rig) script(name, text string) {
	x.t.Helper()
	works, dir := worksIn(x.t), filepath.Join(x.dir, "data", "scripts")
	works(os.MkdirAll(dir, 0o755))
	works(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
}

// slowRun begins a run of a workflow for somebody, and waits until its program runs.
func (x *rig) slowRun(name, user string) {
	x.t.Helper()
	works := worksIn(x.t)
	j, err := x.c.Run(control.WithAsk(x.t.Context(), x.by(user)), name, tidemark.RunSpec{})
	works(err)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r, err := x.c.RunOf(x.t.Context(), j.ID)
		works(err)
		if r.Steps[1].State == "running" {
			return
		}
		if time.Now().After(end) || r.Job.Finished != nil {
			x.t.Fatalf("%s does not run: %+v", name, r)
		}
	}
}

// jobThings are the jobs that made a world. A job has the data that what it made has, and a run that of what its steps are about.
func jobThings(t *testing.T, x *rig, world []thing) (list []thing) {
	t.Helper()
	jobs, err := x.c.Jobs(t.Context(), tidemark.JobFilter{Limit: 1000})
	worksIn(t)(err)
	byName := map[string]thing{}
	for _, v := range world {
		if v.kind == access.KindClone {
			byName[v.name] = v
		}
	}
	byName["workflow:w-mine"] = thing{owner: "alice", app: "orders", in: ofOrders}
	byName["workflow:w-his"] = thing{owner: "bob", app: "orders", in: ofOrders}
	byName["workflow:w-secret"] = thing{owner: "bob", app: "secret", in: here}
	for _, j := range jobs {
		v, ok := byName[j.Application]
		switch {
		case ok && v.owner != j.AskedBy:
			t.Errorf("job %d of %s is %q's", j.ID, j.Application, j.AskedBy)
		case j.Kind == "reclaim":
			v = thing{owner: j.AskedBy, in: here}
		case !ok:
			t.Fatalf("nobody has asked for the job %+v", j)
		}
		list = append(list, thing{kind: access.KindJob, name: formatInt(j.ID), app: v.app, owner: v.owner, in: v.in, live: j.Kind == "workflow"})
	}
	return list
}

// groupsInto makes applications members of consistency groups. Only tapped disks may become that, and these are of another kind here: it is
// written into what is noted with their data, while no server runs.
func groupsInto(t *testing.T, x *rig, groups map[string][]string) {
	t.Helper()
	works, ctx, data := worksIn(t), context.Background(), filepath.Join(x.dir, "data")
	x.stop()
	defer x.start()
	bucket, err := object.OpenDir(vfs.OS, filepath.Join(data, "pool"))
	works(err)
	defer bucket.Close()
	log := slog.New(slog.DiscardHandler)
	store, err := image.Open(ctx, image.Options{FS: vfs.OS, Dir: filepath.Join(data, "store"), Bucket: bucket, CacheBytes: 16 << 20, Logger: log})
	works(err)
	set, err := timeline.Open(ctx, store, timeline.Options{FS: vfs.OS, Dir: filepath.Join(data, "timelines"), Bucket: bucket, Logger: log})
	works(err)
	for _, line := range set.List() {
		about := decode[map[string]any](t, line.About())
		about["groups"] = groups[line.Name()]
		text, err := json.Marshal(about)
		works(err)
		works(line.SetAbout(ctx, text))
	}
	works(set.Close())
	works(store.Close())
}

// listed are the names of what is there, by kind, as the administrator is shown it.
func listed(t *testing.T, x *rig) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, o := range table() {
		if o.filtered || slices.Contains([]string{"list-users", "list-user-groups", "list-grants", "list-tokens"}, o.id) {
			all[o.id] = strings.Join(slices.Sorted(maps.Keys(namesIn(t, x, o.path))), " ")
		}
	}
	apps, err := x.c.Applications(t.Context())
	worksIn(t)(err)
	for _, a := range apps {
		path := "/v1/applications/" + a.Name + "/points"
		all[path] = strings.Join(slices.Sorted(maps.Keys(namesIn(t, x, path))), " ")
	}
	return all
}

func namesIn(t *testing.T, x *rig, path string) map[string]bool {
	t.Helper()
	resp, text := x.ask("GET", path, "")
	if resp.StatusCode != 200 {
		t.Fatalf("%s: %s: %s", path, resp.Status, text)
	}
	return names(t, text)
}

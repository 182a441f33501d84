package control

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/policy"
)

// declared applies documents, and returns what was changed.
func declared(t *testing.T, c *Control, documents string) (changes []string, a policy.Applied) {
	t.Helper()
	a, err := c.Apply(t.Context(), []byte(documents), false)
	if err != nil {
		t.Fatalf("%s: %v", documents, err)
	}
	for _, x := range a.Changes {
		if x.Action != policy.ActionLeave {
			changes = append(changes, x.String())
		}
	}
	return changes, a
}

// tappedVolume makes a volume that passes for a tapped disk, so that it can be a member of a group.
func tappedVolume(t *testing.T, c *Control, name string) {
	t.Helper()
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	a, err := c.app(name)
	if err == nil {
		err = c.annotate(t.Context(), a, func(n *about) { n.Source, n.Taps = "/dev/"+name, []string{"/dev/" + name} })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What documents say of hosts and groups is kept whole: applied again, it changes nothing, and labels that are taken out of them go.
func TestLabelsAreKept(t *testing.T) {
	c, _ := listens(t)
	if _, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: "db1"}); err != nil {
		t.Fatal(err)
	}
	tappedVolume(t, c, "ledger")
	const document = "kind: Host\nname: db1\nlabels: {rack: \"7\"}\n---\nkind: Group\nname: bank\nmembers: [ledger]\noptions: {appshot: 1h}\nlabels: {team: money}\n"
	if changes, _ := declared(t, c, document); !slices.Equal(changes, []string{"change Host db1: labels.rack: 7", "make Group bank: labels.team: money, members: [ledger], options.appshot: 1h"}) {
		t.Errorf("it does %q", changes)
	}
	if changes, _ := declared(t, c, document); len(changes) != 0 {
		t.Errorf("again, it does %q", changes)
	}
	// A change by hand leaves them alone, and who joins later carries them, too.
	tappedVolume(t, c, "queue")
	if _, err := c.ChangeGroup(t.Context(), tidemark.GroupSpec{Name: "bank", Join: []string{"queue"}, Leave: []string{"ledger"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: "db1"}); err != nil {
		t.Fatal(err)
	}
	group, err := c.Group(t.Context(), "bank")
	if err != nil || group.Labels["team"] != "money" || group.Options["appshot"] != "1h" {
		t.Errorf("the group is %+v, %v", group, err)
	}
	host, err := c.Host(t.Context(), "db1")
	if err != nil || host.Labels["rack"] != "7" {
		t.Errorf("the host is %+v, %v", host, err)
	}
	if changes, _ := declared(t, c, "kind: Host\nname: db1\n---\nkind: Group\nname: bank\nmembers: [queue]\n"); !slices.Equal(changes,
		[]string{"change Host db1: labels.rack: 7 → (none)", "change Group bank: labels.team: money → (none), options.appshot: 1h → (none)"}) {
		t.Errorf("without them, it does %q", changes)
	}
	if a, err := c.app("queue"); err != nil || len(a.Notes) != 0 || len(a.Schedules) != 0 {
		t.Errorf("something is left: %+v, %v", a.about, err)
	}
}

// An application that is being protected is not protected twice: who applies again is told of the job that does it.
func TestProtectedOnce(t *testing.T) {
	c, _ := listens(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	document := "kind: Template\nname: gold\nrpo: 1d\n---\nkind: Application\nname: disk\nsource: " + disk + "\nlabels: {team: money}\n"
	spec := tidemark.ProtectSpec{Name: "disk", Source: disk, Labels: map[string]string{"team": "money"}}
	later := WithAsk(t.Context(), Ask{Queue: true, NotBefore: time.Now().Add(time.Hour)}) // for what takes long
	first, err := c.Protect(later, spec)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if changes, a := declared(t, c, document); len(a.Jobs) != 0 || len(a.UnderWay) != 1 || a.UnderWay[0].ID != first.ID || slices.ContainsFunc(changes, func(x string) bool { return strings.Contains(x, "Application") }) {
			t.Errorf("it does %q, by %v, while there is %v", changes, a.Jobs, a.UnderWay)
		}
	}
	if j, err := c.protectOnce(t.Context(), spec); err != nil || j.ID != first.ID { // who has asked at the same time
		t.Errorf("%+v, %v", j, err)
	}
	spec.SLA = "gold"
	if _, err := c.protectOnce(t.Context(), spec); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("other than it is made: %v", err)
	}
	_, err = c.Apply(t.Context(), []byte(document+"sla: gold\n"), false)
	if tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("other than it is made: %v", err)
	}
	if list, err := c.coming(t.Context(), "protect"); err != nil || len(list) != 1 {
		t.Errorf("there are %v, %v", list, err)
	}
	// When it is not made after all, it is made anew.
	if err := c.CancelJob(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	_, a := declared(t, c, document)
	if len(a.Jobs) != 1 || len(a.UnderWay) != 0 {
		t.Fatalf("it is made by %v, while there is %v", a.Jobs, a.UnderWay)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.awaitAll(ctx, a.Jobs); err != nil {
		t.Fatal(err)
	}
	if changes, a := declared(t, c, document); len(changes)+len(a.Jobs)+len(a.UnderWay) != 0 {
		t.Errorf("at the end, it does %q, by %v, while there is %v", changes, a.Jobs, a.UnderWay)
	}
}

// standing is the template of each application, and the group that it has it by.
func standing(t *testing.T, c *Control) map[string]string {
	t.Helper()
	list, err := c.Compliance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, x := range list {
		all[x.Application] = x.Template + " " + x.Group
	}
	return all
}

// The members of a group have its template while they are members, unless they have one of their own, and the schedule goes by it.
func TestGroupPromises(t *testing.T) {
	c, _ := listens(t)
	tappedVolume(t, c, "ledger")
	tappedVolume(t, c, "queue")
	const templates = "kind: Template\nname: gold\ncdp: {window: 2h}\n---\nkind: Template\nname: silver\ncdp: {window: 3h}\n---\nkind: Template\nname: logged\nlog: {keep: 1d}\n---\n"
	const bank = "kind: Group\nname: bank\nmembers: [ledger]\nsla: "
	if _, err := c.Apply(t.Context(), []byte(templates+bank+"nickel\n"), false); tidemark.KindOf(err) != tidemark.NotFound || !strings.Contains(err.Error(), "Group bank names the Template nickel") {
		t.Errorf("a template that is not there: %v", err)
	}
	if changes, _ := declared(t, c, templates+bank+"gold\n"); !slices.Contains(changes, "make Group bank: members: [ledger], sla: gold") {
		t.Errorf("it does %q", changes)
	}
	if changes, _ := declared(t, c, bank+"gold\n"); len(changes) != 0 {
		t.Errorf("again, it does %q", changes)
	}
	is := func(ledger, queue string) {
		t.Helper()
		if all := standing(t, c); all["ledger"] != ledger || all["queue"] != queue {
			t.Errorf("the templates are %q", all)
		}
	}
	is("gold bank", " ")
	window := func(name string, want time.Duration) {
		t.Helper()
		a, err := c.app(name)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); a.t.Window().For != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the window of %s is %v, and not %v", name, a.t.Window().For, want)
			}
		}
	}
	window("ledger", 2*time.Hour)
	joined := time.Now()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	change := func(spec tidemark.GroupSpec) error { _, err := c.ChangeGroup(t.Context(), spec); return err }
	do(change(tidemark.GroupSpec{Name: "bank", Join: []string{"queue"}}))
	is("gold bank", "gold bank")
	window("queue", 2*time.Hour)
	a, err := c.app("ledger")
	do(err)
	b, err := c.app("queue")
	do(err)
	if since := a.Notes["bank"].Promise.Since; !since.Before(joined) || b.Notes["bank"].Promise.Since.Before(joined) {
		t.Errorf("ledger has it since %v, and queue, which joined at %v, since %v", since, joined, b.Notes["bank"].Promise.Since)
	}

	// A template of one's own comes first, and the group's is there when that goes.
	do(c.SetSLA(t.Context(), "ledger", "silver"))
	is("silver ", "gold bank")
	window("ledger", 3*time.Hour)
	do(c.SetSLA(t.Context(), "ledger", ""))
	is("gold bank", "gold bank")
	window("ledger", 2*time.Hour)

	// What a member cannot keep is refused, for all, and names it; whatever the way.
	for _, template := range []string{"logged", "nickel"} {
		if err := c.SetGroupSLA(t.Context(), "bank", template); err == nil {
			t.Errorf("bank has %s", template)
		}
	}
	for _, documents := range []string{"kind: Group\nname: bank\nmembers: [ledger, queue]\nsla: logged\n", "kind: Template\nname: gold\nlog: {keep: 1d}\n"} {
		if _, err := c.Apply(t.Context(), []byte(documents), false); tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "ledger is no database") {
			t.Errorf("%s: %v", documents, err)
		}
	}
	is("gold bank", "gold bank")
	if err := c.RemoveTemplate(t.Context(), "gold"); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "group bank has the template gold") {
		t.Errorf("it is removed: %v", err)
	}
	if err := c.SetGroupSLA(t.Context(), "none", "gold"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("a group that is not there: %v", err)
	}

	// Of several groups, the first by name counts; who leaves has its template no more.
	do(change(tidemark.GroupSpec{Name: "accounts", Join: []string{"queue"}}))
	do(c.SetGroupSLA(t.Context(), "accounts", "silver"))
	is("gold bank", "silver accounts")
	do(change(tidemark.GroupSpec{Name: "accounts", Leave: []string{"queue"}}))
	is("gold bank", "gold bank")
	do(change(tidemark.GroupSpec{Name: "bank", Leave: []string{"queue"}}))
	is("gold bank", " ")
	do(c.SetGroupSLA(t.Context(), "bank", ""))
	is(" ", " ")
	do(c.RemoveTemplate(t.Context(), "gold"))
}

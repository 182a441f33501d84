package control

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"tidemark"
	"tidemark/policy"
)

// What applying documents has forgotten at once is told before, and by how it is applied; it is what is forgotten then.
func TestForgottenIsTold(t *testing.T) {
	c, _ := listens(t)
	for _, name := range []string{"ledger", "queue"} {
		if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		for _, point := range append(made(6), "mine") {
			if _, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: name, Name: point}); err != nil {
				t.Fatal(err)
			}
		}
		a, err := c.app(name)
		if err == nil { // from here on it passes for a tapped disk
			err = c.annotate(t.Context(), a, func(n *about) { n.Source, n.Taps = "/dev/"+name, []string{"/dev/" + name} })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const keep = "kind: Template\nname: %s\nkeep: {count: %d}\n---\n"
	const group = "kind: Group\nname: %s\nmembers: [%s]\nsla: %s\n---\n"
	gold, silver := fmt.Sprintf(keep, "gold", 7), fmt.Sprintf(keep, "silver", 4)
	left := map[string]int{"ledger": 7, "queue": 7}
	for i, x := range []struct {
		documents string
		want      []policy.Forgotten
	}{
		{gold + silver, nil}, // which nobody has
		{fmt.Sprintf(group, "bank", "ledger, queue", "gold"), nil},
		{fmt.Sprintf(group, "bank", "ledger, queue", "gold") + "kind: Template\nname: gold\n", nil},
		{fmt.Sprintf(keep, "gold", 6), []policy.Forgotten{{Application: "ledger", Template: "gold", Points: 1}, {Application: "queue", Template: "gold", Points: 1}}},
		{fmt.Sprintf(group, "accounts", "queue", "silver"), []policy.Forgotten{{Application: "queue", Template: "silver", Points: 2}}}, // the first by name
		{"kind: Application\nname: ledger\nsource: /dev/ledger\nsla: silver\n", []policy.Forgotten{{Application: "ledger", Template: "silver", Points: 2}}},
		{fmt.Sprintf(keep, "gold", 1), nil}, // which nobody has now
		{"kind: Application\nname: ledger\nsource: /dev/ledger\n", []policy.Forgotten{{Application: "ledger", Template: "gold", Points: 3}}},
		{fmt.Sprintf(group, "accounts", "ledger", "silver") + fmt.Sprintf(group, "bank", "queue", "gold"), []policy.Forgotten{{Application: "queue", Template: "gold", Points: 3}}},
	} {
		for _, dry := range []bool{true, false} {
			a, err := c.Apply(t.Context(), []byte(x.documents), dry)
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			if !slices.Equal(a.Forgotten, x.want) {
				t.Errorf("%d: dry run %v: %v are forgotten, and not %v", i, dry, a.Forgotten, x.want)
			}
		}
		for _, f := range x.want {
			left[f.Application] -= f.Points
		}
		for name, n := range left {
			app, err := c.app(name)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, fmt.Sprintf("%d: %s has %d points", i, name, n), func() bool { return len(app.t.Points()) == n })
		}
	}
}

// made are names that nobody chose.
func made(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("c20261128-040950.%03d", i))
	}
	return names
}

// AppShots by an option, of the application or of a group, are kept for the time that the option says: no template lets them go before.
func TestTemplateLeavesShotsOfOptions(t *testing.T) {
	c, _ := listens(t)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "ledger", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	a, err := c.app("ledger")
	if err != nil {
		t.Fatal(err)
	}
	day := time.Now().Add(-24 * time.Hour).UTC().Truncate(24 * time.Hour)
	var shots []tidemark.RecoveryPoint
	for i := range 288 {
		at := day.Add(time.Duration(i) * 5 * time.Minute)
		shots = append(shots, tidemark.RecoveryPoint{Position: tidemark.Position(i + 1), Time: at, Bookmark: scheduledPrefix + at.Format(nameTime)})
	}
	ofGroup := slices.Clone(shots)
	for i := range ofGroup {
		ofGroup[i].Labels = map[string]string{labelGroup: "bank"}
	}
	own := a
	own.Options = map[string]string{optionEvery: "5m", optionKeep: "72h"}
	tmpl := policy.Template{Name: "platinum", CDP: &policy.CDP{}, Keep: &policy.Retention{Daily: 30}}
	for _, x := range []struct {
		who    string
		a      app
		points []tidemark.RecoveryPoint
		gone   int
	}{
		{"a group", a, ofGroup, 0},
		{"the application", own, shots, 0},
		{"the template", a, shots, len(shots) - 1}, // the newest is that of the day, too
	} {
		if n := len(c.toForget(x.a, tmpl, keptPoints(x.a, x.points, nil), time.Now())); n != x.gone {
			t.Errorf("of %d AppShots of %s, %d are forgotten", len(shots), x.who, n)
		}
	}
}

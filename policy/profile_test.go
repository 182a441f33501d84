package policy

import (
	"strings"
	"testing"

	"tidemark"
)

// Where copies go is said by the template or by the profile of the application, for each sort of copies by itself.
func TestCheckPlaces(t *testing.T) {
	far, near := Profile{Name: "far", Replicate: "hamburg"}, Profile{Name: "near", Jobs: 1}
	for _, c := range []struct {
		tmpl    Template
		profile Profile
		needs   bool
		says    string // empty: nothing is missing
		hint    string
	}{
		{Template{}, Profile{}, false, "", ""},
		{Template{Replicate: &Copy{To: "here"}}, Profile{}, false, "", ""},
		{Template{Replicate: &Copy{}}, far, true, "", ""},
		{Template{Name: "t", Replicate: &Copy{}}, Profile{}, true, "the template t has replicate, and neither it nor a profile of orders says where to", "tidemark profile set orders PROFILE"},
		{Template{Name: "t", Replicate: &Copy{}}, near, true, "the template t has replicate", "write `replicate` in the profile near"},
		{Template{Name: "t", Replicate: &Copy{}, Vault: &Copy{}}, far, true, "the template t has vault", "write `vault` in the profile far"},
		{Template{Replicate: &Copy{}, Vault: &Copy{To: "tape"}}, far, true, "", ""},
	} {
		if got := c.tmpl.NeedsPlaces(); got != c.needs {
			t.Errorf("%+v: %v", c.tmpl, got)
		}
		err := c.tmpl.CheckPlaces("orders", c.profile)
		if (err == nil) != (c.says == "") {
			t.Errorf("%+v with %+v: %v", c.tmpl, c.profile, err)
		}
		if e, ok := err.(*tidemark.Error); err != nil && (!ok || e.Kind != tidemark.Invalid || !strings.Contains(e.Message, c.says) || !strings.Contains(e.Hint, c.hint)) {
			t.Errorf("%+v with %+v: %v", c.tmpl, c.profile, err)
		}
	}
}

package policy

import (
	"cmp"
	"fmt"

	"tidemark"
)

// Profile is the other half of a service level (Actifio's resource profile): where a [Template] says how often and for how long, it says where
// copies go, and how much of a server its applications may take. An application has one at most. Check it with [Profile.Validate] before use.
type Profile struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Jobs is how many jobs of its applications may run at a time for one more to begin that a template asks for. 0: no bound.
	Jobs int `json:"jobs,omitempty"`
	// Replicate and Vault name the site and the vault that these policies of a template copy to that do not say it themselves.
	Replicate string `json:"replicate,omitempty"`
	Vault     string `json:"vault,omitempty"`
}

// maxJobs bounds Profile.Jobs: no server runs more.
const maxJobs = 10_000

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless p can be applied.
func (p Profile) Validate() error {
	var c checks
	c.Name("name", p.Name)
	c.That(p.Jobs >= 0 && p.Jobs <= maxJobs, "jobs", fmt.Sprintf("write 1 to %d, or leave it away", maxJobs), "%d is not possible", p.Jobs)
	for field, place := range map[string]string{"replicate": p.Replicate, "vault": p.Vault} {
		if place != "" {
			c.Name(field, place)
		}
	}
	c.That(p.Jobs != 0 || p.Replicate != "" || p.Vault != "", "name", "write jobs, replicate or vault", "the profile %.60q says nothing", p.Name)
	return c.Err()
}

// Notes are what a user of the profile should know, one line each: what nothing acts on yet.
func (p Profile) Notes() (notes []string) {
	if p.Replicate != "" {
		notes = append(notes, notCopied(PolicyReplicate, p.Replicate))
	}
	if p.Vault != "" {
		notes = append(notes, notCopied(PolicyVault, p.Vault))
	}
	return notes
}

// notCopied says that nothing acts on a policy that copies to a place.
func notCopied(policy Policy, place string) string {
	return fmt.Sprintf("%s: read and checked, but this version does not act on it: nothing is copied to %s", policy, cmp.Or(place, "where profiles say"))
}

// NeedsPlaces reports whether a profile has to say where copies go: a policy of the template makes some, and does not say it.
func (t Template) NeedsPlaces() bool {
	return t.Replicate != nil && t.Replicate.To == "" || t.Vault != nil && t.Vault.To == ""
}

// CheckPlaces returns an error of kind [tidemark.Invalid] if neither the template nor the profile of an application, which is the zero Profile if it
// has none, says where copies go that the template promises.
func (t Template) CheckPlaces(application string, p Profile) error {
	missing := func(policy Policy, copies *Copy, place string) error {
		if copies == nil || cmp.Or(copies.To, place) != "" {
			return nil
		}
		hint := "give it a profile that says it: `tidemark profile set " + application + " PROFILE`, or write `to` in the template"
		if p.Name != "" {
			hint = fmt.Sprintf("write `%s` in the profile %s, or `to` in the template", policy, p.Name)
		}
		return tidemark.Errorf(tidemark.Invalid, "the template %s has %s, and neither it nor a profile of %s says where to", t.Name, policy, application).WithHint(hint)
	}
	return cmp.Or(missing(PolicyReplicate, t.Replicate, p.Replicate), missing(PolicyVault, t.Vault, p.Vault))
}

package control

import (
	"cmp"
	"context"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// A name is free again when what had it is removed, and whoever takes it then may have other data, of another application. So what a clone
// is of, and what a job is for, is known by an ID as well, and a name alone is enough only for who asks now.

// cloning is a request for a clone as it is recorded. [tidemark.CloneSpec] names the source; this says which of that name is meant.
type cloning struct {
	tidemark.CloneSpec
	// From is the first ID of the source; empty: of whoever has the name now.
	From string `json:"from,omitempty"`
	// First is that of the clone, if it is made anew; empty: it is a new one.
	First string `json:"first,omitempty"`
}

// firstID is the ID of the first timeline that an application, clone or mount had. A clone that is made anew has another timeline, and
// stays what others are of.
func (a app) firstID() string { return cmp.Or(a.First, a.t.ID()) }

// mustBe refuses an application that has the name of what a clone is of, and is another. Empty is any.
func (a app) mustBe(firstID, clone string) error {
	if firstID == "" || firstID == a.firstID() {
		return nil
	}
	return errAnother(a.name, clone)
}

func errAnother(source, clone string) error {
	return tidemark.Errorf(tidemark.Conflict, "%s is not what %s is of: that was removed, and another has its name", source, clone).
		WithHint("make a new clone of what you mean: `tidemark clone " + source + "[@POINT] NAME`")
}

// firstIDOf is the first ID of who has a name; empty: nobody has.
func (c *Control) firstIDOf(name string) string {
	if name == "" {
		return ""
	}
	a, err := c.app(name)
	if err != nil {
		return ""
	}
	return a.firstID()
}

// holder is who has a name now.
type holder struct {
	firstID string
	since   time.Time // when it came to be, or was made anew last
}

// holderOf is who has a name, also while a refresh has taken it away; nil: nobody.
func (c *Control) holderOf(ctx context.Context, name string) (*holder, error) {
	a, err := c.app(name)
	if err == nil {
		return &holder{a.firstID(), a.t.Describe().Created}, nil
	}
	if notThere(err) != nil {
		return nil, err
	}
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil || k.Again == nil {
		return nil, notThere(err)
	}
	return &holder{k.Again.First, k.Created}, nil
}

// had reports whether something that happened to who had the name happened to this one: by the first ID that was noted then or, where none
// was, by when it was over.
func (h *holder) had(firstID string, over time.Time) bool {
	if firstID != "" && h.firstID != "" {
		return firstID == h.firstID
	}
	return !over.Before(h.since)
}

// isStill refuses a job if another has the name of its application by now, or of what it takes the data of. That nobody has it may be as it
// should, as for a refresh that was cut.
func (c *Control) isStill(j *catalog.Job, of *meant) error {
	named := []meant{{Name: j.Application, ID: j.FirstID}}
	if of != nil {
		named = append(named, *of)
	}
	for _, m := range named {
		switch now := c.idOf(m); {
		case m.ID == "" || now == "" || now == m.ID:
		case m.Group:
			return tidemark.Errorf(tidemark.Conflict, "the members of the group %s are not those for which this %s was asked for", m.Name, j.Kind).
				WithHint("ask for it again, if you mean those of now: `tidemark group ls`")
		default:
			return tidemark.Errorf(tidemark.Conflict, "this %s was asked for another %s, which was removed meanwhile", j.Kind, m.Name).
				WithHint("ask for it again, if you mean the one that has the name now")
		}
	}
	return nil
}

// sourceOf is the first ID of what a clone is of, which had that name. Where an older release has not noted it, it is that of who has the
// name now, if he has data of the same application. It is empty if nobody has it.
func (c *Control) sourceOf(ctx context.Context, k app, name string) (string, error) {
	src, err := c.app(name)
	if err != nil {
		return k.From, notThere(err)
	}
	if k.From != "" {
		return k.From, src.mustBe(k.From, k.name)
	}
	noted, err := c.catalog.Object(ctx, access.KindClone, k.name)
	if err != nil { // of what it is, that name alone says
		return src.firstID(), notThere(err)
	}
	o, err := c.objectOf(ctx, src)
	if err == nil && cmp.Or(o.Source, src.name) != noted.Source {
		err = errAnother(name, k.name)
	}
	return src.firstID(), err
}

// cloneAnew is the request by which a clone is made once more.
func (c *Control) cloneAnew(ctx context.Context, spec tidemark.RefreshSpec) (again cloning, err error) {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, spec.Name, &k); err != nil {
		return again, err
	}
	ref, err := tidemark.ParseRef(k.Spec.Ref)
	if err != nil {
		return again, err
	}
	again.CloneSpec = tidemark.CloneSpec{Ref: ref.App, Name: spec.Name, Port: k.Port, Host: k.Spec.Host, Listen: k.Spec.Listen, Lifetime: k.Spec.Lifetime}
	if spec.Point != "" {
		again.Ref = ref.App + "@" + spec.Point
	}
	if k.Type != tidemark.TypePostgres {
		again.Port = 0
	}
	a, err := c.app(spec.Name)
	if err == nil {
		again.First = a.firstID()
	} else if a.name = spec.Name; notThere(err) != nil { // one that is in the catalog alone is made anew, too
		return again, err
	} else if k.Again != nil {
		again.First, a.From = k.Again.First, k.Again.From
	}
	again.From, err = c.sourceOf(ctx, a, ref.App)
	return again, err
}

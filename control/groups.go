package control

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"tidemark"
)

// A group is a name that its members carry, each in what is noted about it in the pool: it is there as long as it has members, and
// needs no place of its own. A bookmark of a group is a bookmark of each member, of one name and one moment.

// labelGroup is the label of a point that was made of a group: which.
const labelGroup = "group"

// membersOf returns the members of a group, by name.
func (c *Control) membersOf(group string) (list []app) {
	for _, a := range c.apps() {
		if slices.Contains(a.Groups, group) {
			list = append(list, a)
		}
	}
	return list
}

// Groups lists the consistency groups.
func (c *Control) Groups(context.Context) ([]tidemark.Group, error) {
	list := []tidemark.Group{}
	for _, a := range c.apps() {
		for _, name := range a.Groups {
			i := slices.IndexFunc(list, func(g tidemark.Group) bool { return g.Name == name })
			if i < 0 {
				i = len(list)
				list = append(list, tidemark.Group{Name: name, Options: a.Schedules[name], Labels: a.Notes[name].Labels, SLA: a.Notes[name].Promise.template()})
			}
			list[i].Members = append(list[i].Members, a.name)
		}
	}
	slices.SortFunc(list, func(a, b tidemark.Group) int { return compare(a.Name, b.Name) })
	return list, nil
}

// groupNote is what is noted of a group beside its options. All of its members carry it, as they do these.
type groupNote struct {
	Labels map[string]string `json:"labels,omitempty"`
	// Promise is the SLA template that the group has, since when this member has it by that; nil: none.
	Promise *promise `json:"promise,omitempty"`
}

func (n groupNote) equal(m groupNote) bool {
	return maps.Equal(n.Labels, m.Labels) && n.Promise.template() == m.Promise.template()
}

// forMember is what a member carries for n, that carried something else before: what it was promised already, it still is.
func (n groupNote) forMember(before groupNote) groupNote {
	if n.Promise = newPromise(n.Promise.template()); n.Promise.template() == before.Promise.template() {
		n.Promise = before.Promise
	}
	return n
}

// noteOf is what is noted of a group. If a change was cut, it is what its first member carries.
func (c *Control) noteOf(group string) groupNote {
	for _, a := range c.membersOf(group) {
		return a.Notes[group]
	}
	return groupNote{}
}

// ChangeGroup lets applications join and leave a group, and changes its options, which needs no stop of anything.
func (c *Control) ChangeGroup(ctx context.Context, spec tidemark.GroupSpec) (tidemark.Group, error) {
	return c.changeGroup(ctx, spec, nil)
}

// changeGroup is ChangeGroup; beyond it, note changes what is noted of the group, unless it is nil.
func (c *Control) changeGroup(ctx context.Context, spec tidemark.GroupSpec, note func(*groupNote)) (tidemark.Group, error) {
	c.groups.change.Lock()
	defer c.groups.change.Unlock()
	g := tidemark.Group{Name: spec.Name}
	if err := tidemark.CheckName(spec.Name); err != nil {
		return g, err
	}
	if _, err := c.app(spec.Name); err == nil {
		return g, tidemark.Errorf(tidemark.Conflict, "%s is an application", spec.Name).WithHint("choose another name for the group")
	}
	join, leave, err := c.comeAndGo(spec)
	if err != nil {
		return g, err
	}
	options, err := changedOptions(c.groupOptions(spec.Name), spec.Options)
	if err != nil {
		return g, err
	}
	members := append(c.membersOf(spec.Name), join...)
	if len(members) == 0 {
		return g, errNoGroup(spec.Name)
	}
	before := c.noteOf(spec.Name)
	noted, anew := before, join
	if note != nil {
		note(&noted)
	}
	if noted.Promise.template() != before.Promise.template() {
		anew = members
	}
	if err := c.canPromiseAll(ctx, anew, noted.Promise.template()); err != nil {
		return g, err
	}
	defer c.keepGroup(spec.Name) // also if it fails in the middle
	slices.SortStableFunc(members, func(a, b app) int { return compare(a.name, b.name) })
	for _, a := range slices.Backward(members) { // the first, which counts, comes last: a change that was cut is seen as none, and made when it is asked for again
		if err := c.joinGroup(ctx, a, spec.Name, options, noted); err != nil {
			return g, err
		}
	}
	for _, a := range leave {
		if err := c.leaveGroup(ctx, a, spec.Name); err != nil {
			return g, err
		}
	}
	for _, a := range c.membersOf(spec.Name) {
		note := a.Notes[spec.Name]
		g.Members, g.Options, g.Labels, g.SLA = append(g.Members, a.name), a.Schedules[spec.Name], note.Labels, note.Promise.template()
	}
	return g, nil
}

// canPromiseAll refuses a template that a member of a group cannot keep, whether it has one of its own now or not.
func (c *Control) canPromiseAll(ctx context.Context, members []app, template string) error {
	if template == "" || len(members) == 0 {
		return nil
	}
	t, err := c.template(ctx, template)
	if err != nil {
		return err
	}
	for _, a := range members {
		if err := cmp.Or(c.canPromise(a, t), c.canPlace(ctx, a, t)); err != nil {
			return err
		}
	}
	return nil
}

func errNoGroup(name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no group %q", name).WithHint("`tidemark group ls` lists them")
}

// comeAndGo finds the applications that are to join a group, and those that are to leave it.
func (c *Control) comeAndGo(spec tidemark.GroupSpec) (join, leave []app, err error) {
	for _, name := range spec.Join {
		a, err := c.app(name)
		if err == nil && !a.tapped() {
			err = errNotTapped(name)
		}
		if err != nil {
			return nil, nil, err
		}
		join = append(join, a)
	}
	for _, name := range spec.Leave {
		a, err := c.app(name)
		if err == nil && !slices.Contains(a.Groups, spec.Name) {
			err = tidemark.Errorf(tidemark.NotFound, "%s is no member of %s", name, spec.Name).WithHint("`tidemark group ls` lists the members")
		}
		if err != nil {
			return nil, nil, err
		}
		leave = append(leave, a)
	}
	return join, leave, nil
}

func errNotTapped(name string) error {
	return tidemark.Errorf(tidemark.Invalid, "%s is not tapped, and cannot be marked in the moment of others", name).WithHint("`tidemark protect DEVICE --cdp` taps a disk")
}

// joinGroup makes an application a member of a group with these options, of which this is noted.
func (c *Control) joinGroup(ctx context.Context, a app, group string, options map[string]string, noted groupNote) error {
	if slices.Contains(a.Groups, group) && maps.Equal(a.Schedules[group], options) && a.Notes[group].equal(noted) {
		return nil
	}
	defer c.promises.anewFor(a.t.ID())
	return c.annotate(ctx, a, func(n *about) {
		if !slices.Contains(n.Groups, group) {
			n.Groups = append(n.Groups, group)
		}
		if n.Schedules == nil {
			n.Schedules = map[string]map[string]string{}
		}
		n.Schedules[group] = options
		if len(options) == 0 {
			delete(n.Schedules, group)
		}
		if n.Notes == nil {
			n.Notes = map[string]groupNote{}
		}
		n.Notes[group] = noted.forMember(n.Notes[group])
		if noted.equal(groupNote{}) {
			delete(n.Notes, group)
		}
	})
}

// leaveGroup ends the membership of an application in a group.
func (c *Control) leaveGroup(ctx context.Context, a app, group string) error {
	defer c.promises.anewFor(a.t.ID())
	return c.annotate(ctx, a, func(n *about) {
		n.Groups = slices.DeleteFunc(n.Groups, func(name string) bool { return name == group })
		delete(n.Schedules, group)
		delete(n.Notes, group)
	})
}

// BookmarkGroup marks one moment of all members of a group.
func (c *Control) BookmarkGroup(ctx context.Context, spec tidemark.BookmarkSpec) (tidemark.GroupPoint, error) {
	g := tidemark.GroupPoint{Group: spec.Application, Bookmark: spec.Name, Points: []tidemark.MemberPoint{}}
	if err := tidemark.CheckBookmark(spec.Name); err != nil {
		return g, err
	}
	members := c.membersOf(spec.Application)
	if len(members) == 0 {
		return g, errNoGroup(spec.Application)
	}
	list, err := c.shootSettled(ctx, members, spec.Name, map[string]string{labelGroup: spec.Application})
	for i, p := range list {
		g.Points = append(g.Points, tidemark.MemberPoint{Application: members[i].name, RecoveryPoint: p})
		g.Hold = p.Hold
	}
	return g, err
}

// RestoreGroup takes the disks of all members of a group back to one moment, in place: a bookmark of the group, or a time.
func (c *Control) RestoreGroup(ctx context.Context, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	return c.ask(ctx, "restore", restoring{RestoreSpec: spec, Group: true})
}

func (c *Control) groupRestoreWork(ctx context.Context, spec tidemark.RestoreSpec) (*work, error) {
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return nil, err
	}
	members := c.membersOf(ref.App)
	switch {
	case len(members) == 0:
		return nil, errNoGroup(ref.App)
	case !spec.InPlace || spec.To != "" || spec.Disk != "":
		return nil, tidemark.Errorf(tidemark.Invalid, "a group is restored in place, with all disks of its members").WithHint("give --in-place; a member alone is restored by `tidemark restore APP@POINT --to`")
	case ref.Point.Latest() || ref.Point.IsPosition():
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is no moment of all members of group %s", ref.Point, ref.App).WithHint("name a bookmark of the group, or a time: `tidemark points " + members[0].name + "` lists them")
	}
	at, err := momentOf(members, ref.Point)
	if err != nil {
		return nil, err
	}
	p := &inPlace{c: c, takingBack: takingBack{Ref: ref.App + "@" + at.String(), Group: ref.App}}
	for _, a := range members {
		pos, err := c.resolve(ctx, a, at)
		if err == nil && at.Bookmark != "" {
			err = isOfGroup(ctx, a, pos, ref.App, at.Bookmark)
		}
		if err != nil {
			return nil, err
		}
		p.members = append(p.members, &returning{a: a, takenBack: takenBack{Application: a.name, Position: pos}})
	}
	recorded := spec
	recorded.Ref = p.Ref
	w := p.work(spec.Ref, restoring{RestoreSpec: recorded, Group: true})
	w.means = meant{Name: ref.App, Group: true}
	return w, nil
}

// momentOf makes of a time that is counted from now one that stays, and is the same for all members.
func momentOf(members []app, p tidemark.Point) (tidemark.Point, error) {
	for _, a := range members {
		when, timed, err := a.t.When(p)
		if err != nil {
			return p, err
		}
		if timed {
			p = tidemark.Point{Time: when}
		}
	}
	return p, nil
}

// isOfGroup refuses a bookmark that a member has, but not as one of its group.
func isOfGroup(ctx context.Context, a app, pos tidemark.Position, group, bookmark string) error {
	p, err := pointAt(a.t, pos)
	if err != nil { // it has no image yet
		if err := a.t.Fold(ctx); err != nil {
			return err
		}
		p, err = pointAt(a.t, pos)
	}
	if err != nil {
		return err
	}
	if p.Labels[labelGroup] != group {
		return tidemark.Errorf(tidemark.Invalid, "the bookmark %s of %s was not made with those of the other members of %s", bookmark, a.name, group).
			WithHint("`tidemark group bookmark` makes one of all of them; a time names one moment as well")
	}
	return nil
}

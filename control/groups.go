package control

import (
	"context"
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
				list = append(list, tidemark.Group{Name: name})
			}
			list[i].Members = append(list[i].Members, a.name)
		}
	}
	slices.SortFunc(list, func(a, b tidemark.Group) int { return compare(a.Name, b.Name) })
	return list, nil
}

// ChangeGroup lets applications join and leave a group, which needs no stop of anything.
func (c *Control) ChangeGroup(ctx context.Context, spec tidemark.GroupSpec) (tidemark.Group, error) {
	g := tidemark.Group{Name: spec.Name}
	if err := tidemark.CheckName(spec.Name); err != nil {
		return g, err
	}
	if _, err := c.app(spec.Name); err == nil {
		return g, tidemark.Errorf(tidemark.Conflict, "%s is an application", spec.Name).WithHint("choose another name for the group")
	}
	c.grouping.Lock()
	defer c.grouping.Unlock()
	var join, leave []app
	for _, name := range spec.Join {
		a, err := c.app(name)
		if err == nil && !a.tapped() {
			err = tidemark.Errorf(tidemark.Invalid, "%s is not tapped, and cannot be marked in the moment of others", name).WithHint("`tidemark protect DEVICE --cdp` taps a disk")
		}
		if err != nil {
			return g, err
		}
		join = append(join, a)
	}
	for _, name := range spec.Leave {
		a, err := c.app(name)
		if err == nil && !slices.Contains(a.Groups, spec.Name) {
			err = tidemark.Errorf(tidemark.NotFound, "%s is no member of %s", name, spec.Name).WithHint("`tidemark group ls` lists the members")
		}
		if err != nil {
			return g, err
		}
		leave = append(leave, a)
	}
	for _, a := range join {
		if !slices.Contains(a.Groups, spec.Name) {
			a.Groups = append(a.Groups, spec.Name)
		}
		if err := a.t.SetAbout(ctx, mustJSON(a.about)); err != nil {
			return g, err
		}
	}
	for _, a := range leave {
		a.Groups = slices.DeleteFunc(a.Groups, func(n string) bool { return n == spec.Name })
		if err := a.t.SetAbout(ctx, mustJSON(a.about)); err != nil {
			return g, err
		}
	}
	for _, a := range c.membersOf(spec.Name) {
		g.Members = append(g.Members, a.name)
	}
	return g, nil
}

// BookmarkGroup marks one moment of all members of a group.
func (c *Control) BookmarkGroup(ctx context.Context, spec tidemark.BookmarkSpec) (tidemark.GroupPoint, error) {
	g := tidemark.GroupPoint{Group: spec.Application, Bookmark: spec.Name, Points: []tidemark.MemberPoint{}}
	if err := tidemark.CheckName(spec.Name); err != nil {
		return g, err
	}
	members := c.membersOf(spec.Application)
	if len(members) == 0 {
		return g, tidemark.Errorf(tidemark.NotFound, "there is no group %q", spec.Application).WithHint("`tidemark group ls` lists them")
	}
	for _, a := range members {
		if err := c.settled(a); err != nil {
			return g, err
		}
	}
	list, err := c.shootAll(ctx, members, spec.Name, map[string]string{labelGroup: spec.Application})
	for i, p := range list {
		g.Points = append(g.Points, tidemark.MemberPoint{Application: members[i].name, RecoveryPoint: p})
		g.Hold = p.Hold
	}
	return g, err
}

// RestoreGroup takes the disks of all members of a group back to one moment, in place: a bookmark of the group, or a time.
func (c *Control) RestoreGroup(ctx context.Context, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return tidemark.Job{}, err
	}
	members := c.membersOf(ref.App)
	switch {
	case len(members) == 0:
		return tidemark.Job{}, tidemark.Errorf(tidemark.NotFound, "there is no group %q", ref.App).WithHint("`tidemark group ls` lists them")
	case !spec.InPlace || spec.To != "" || spec.Disk != "":
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "a group is restored in place, with all disks of its members").WithHint("give --in-place; a member alone is restored by `tidemark restore APP@POINT --to`")
	case ref.Point.Latest() || ref.Point.IsPosition():
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "%s is no moment of all members of group %s", ref.Point, ref.App).WithHint("name a bookmark of the group, or a time: `tidemark points " + members[0].name + "` lists them")
	}
	at, err := momentOf(members, ref.Point)
	if err != nil {
		return tidemark.Job{}, err
	}
	p := &inPlace{c: c, takingBack: takingBack{Ref: ref.App + "@" + at.String(), Group: ref.App}}
	for _, a := range members {
		pos, err := c.resolve(ctx, a, at)
		if err == nil && at.Bookmark != "" {
			err = isOfGroup(a, pos, ref.App, at.Bookmark)
		}
		if err != nil {
			return tidemark.Job{}, err
		}
		p.members = append(p.members, &returning{a: a, takenBack: takenBack{Application: a.name, Position: pos}})
	}
	return p.start(ctx, spec)
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
func isOfGroup(a app, pos tidemark.Position, group, bookmark string) error {
	if p, err := pointAt(a.t, pos); err == nil && p.Labels[labelGroup] != group {
		return tidemark.Errorf(tidemark.Invalid, "the bookmark %s of %s was not made with those of the other members of %s", bookmark, a.name, group).
			WithHint("`tidemark group bookmark` makes one of all of them; a time names one moment as well")
	}
	return nil
}

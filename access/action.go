package access

import (
	"slices"
	"strings"
)

// Action is what somebody wants to do. The list is closed: an action that is
// not in it is denied to everybody.
type Action string

// The actions. [Action.Means] says what each is.
const (
	ApplicationView      Action = "application.view"
	ApplicationPoints    Action = "application.points"
	ApplicationClone     Action = "application.clone"
	ApplicationMount     Action = "application.mount"
	ApplicationExport    Action = "application.export"
	ApplicationBookmark  Action = "application.bookmark"
	ApplicationCapture   Action = "application.capture"
	ApplicationRestore   Action = "application.restore"
	ApplicationPublish   Action = "application.publish"
	ApplicationProve     Action = "application.prove"
	ApplicationExpire    Action = "application.expire"
	ApplicationConfigure Action = "application.configure"
	ApplicationProtect   Action = "application.protect"

	CloneView    Action = "clone.view"
	CloneUse     Action = "clone.use"
	CloneRefresh Action = "clone.refresh"
	CloneRewind  Action = "clone.rewind"
	CloneExtend  Action = "clone.extend"
	CloneShare   Action = "clone.share"
	CloneRemove  Action = "clone.remove"

	MountView    Action = "mount.view"
	MountRefresh Action = "mount.refresh"
	MountRemove  Action = "mount.remove"

	ExportView   Action = "export.view"
	ExportRemove Action = "export.remove"

	GroupView     Action = "group.view"
	GroupBookmark Action = "group.bookmark"
	GroupRestore  Action = "group.restore"
	GroupManage   Action = "group.manage"

	JobView   Action = "job.view"
	JobCancel Action = "job.cancel"

	HostView   Action = "host.view"
	HostUse    Action = "host.use"
	HostManage Action = "host.manage"

	PoolView   Action = "pool.view"
	PoolVerify Action = "pool.verify"
	PoolManage Action = "pool.manage"

	SLAView   Action = "sla.view"
	SLAManage Action = "sla.manage"

	WorkflowView   Action = "workflow.view"
	WorkflowRun    Action = "workflow.run"
	WorkflowManage Action = "workflow.manage"

	TokenView   Action = "token.view"
	TokenManage Action = "token.manage"

	AccessView    Action = "access.view"
	AccessManage  Action = "access.manage"
	AuditView     Action = "audit.view"
	WebhookView   Action = "webhook.view"
	WebhookManage Action = "webhook.manage"
	ServerView    Action = "server.view"
	ServerManage  Action = "server.manage"
)

// Kind is a sort of object. It is the first half of the actions on it.
type Kind string

// The kinds of objects.
const (
	KindApplication Kind = "application" // protected, or a volume
	KindClone       Kind = "clone"       // an application, too: application.capture is for clones as well
	KindMount       Kind = "mount"
	KindExport      Kind = "export"
	KindGroup       Kind = "group" // a consistency group
	KindJob         Kind = "job"
	KindHost        Kind = "host"
	KindPool        Kind = "pool"
	KindSLA         Kind = "sla"
	KindWorkflow    Kind = "workflow"
	KindToken       Kind = "token"  // API tokens, sessions and the password of a user
	KindAccess      Kind = "access" // users, groups and grants
	KindAudit       Kind = "audit"
	KindWebhook     Kind = "webhook"
	KindServer      Kind = "server"
)

// trait is what the decision has to know of an action beside the roles.
type trait int

const (
	// common: what it shows belongs to everybody who has a role with it, whatever the scope.
	common trait = 1 << iota
	// takes: the data of a point comes out, so the limits of a grant say which points.
	takes
)

// entry is a row of the table of roles.
type entry struct {
	action Action
	levels [len(roles)]Level
	traits trait
	means  string
}

func (e *entry) has(t trait) bool { return e.traits&t != 0 }

// table is the whole of it: every action, and how far each role may do it.
// docs/access.md shows the same table, which a test holds.
var table = []entry{
	//                     admin operator owner developer auditor
	{ApplicationView, [...]Level{All, All, All, Open, All}, 0, "see an application or clone: what it is and how it is"},
	{ApplicationPoints, [...]Level{All, All, All, Open, All}, 0, "list its points and bookmarks, and compare two of them"},
	{ApplicationClone, [...]Level{All, All, All, Open, None}, takes, "make a clone of a point"},
	{ApplicationMount, [...]Level{All, All, All, Open, None}, takes, "mount a point on a host"},
	{ApplicationExport, [...]Level{All, All, All, Own, None}, takes, "serve a point over the network"},
	{ApplicationBookmark, [...]Level{All, All, All, Own, None}, 0, "bookmark the present"},
	{ApplicationCapture, [...]Level{All, All, All, Own, None}, 0, "capture it now, or import into a volume"},
	{ApplicationRestore, [...]Level{All, All, All, None, None}, takes, "write a point over production, a file or a device"},
	{ApplicationPublish, [...]Level{All, All, All, None, None}, 0, "say that a bookmark or LiveClone is fit for others, masked for example"},
	{ApplicationProve, [...]Level{All, All, All, Own, None}, 0, "prove that a point can be recovered, in a sandbox"},
	{ApplicationExpire, [...]Level{All, All, None, Own, None}, 0, "forget points"},
	{ApplicationConfigure, [...]Level{All, All, None, Own, None}, 0, "change its options, its SLA template and profile, and how long its past is kept"},
	{ApplicationProtect, [...]Level{All, All, None, None, None}, 0, "begin to protect something, make a volume, and end either"},

	{CloneView, [...]Level{All, All, All, Open, All}, 0, "see a clone"},
	{CloneUse, [...]Level{All, All, All, Open, None}, 0, "connect to a clone: see its address and credentials"},
	{CloneRefresh, [...]Level{All, All, All, Own, None}, takes, "make it anew from a point of its source"},
	{CloneRewind, [...]Level{All, All, All, Own, None}, 0, "take it back to a state of its own"},
	{CloneExtend, [...]Level{All, All, All, Own, None}, 0, "let it live longer"},
	{CloneShare, [...]Level{All, All, All, Own, None}, 0, "share it with users and groups who have rights over its source"},
	{CloneRemove, [...]Level{All, All, All, Own, None}, 0, "remove it"},

	{MountView, [...]Level{All, All, All, Own, All}, 0, "see a mount"},
	{MountRefresh, [...]Level{All, All, All, Own, None}, takes, "make it anew from another point"},
	{MountRemove, [...]Level{All, All, All, Own, None}, 0, "unmount it"},
	{ExportView, [...]Level{All, All, All, Own, All}, 0, "see an export"},
	{ExportRemove, [...]Level{All, All, All, Own, None}, 0, "end an export"},

	{GroupView, [...]Level{All, All, All, Open, All}, 0, "see a consistency group all of whose members one has rights over"},
	{GroupBookmark, [...]Level{All, All, All, None, None}, 0, "bookmark all members at one moment"},
	{GroupRestore, [...]Level{All, All, All, None, None}, takes, "take all members back to one moment"},
	{GroupManage, [...]Level{All, All, None, None, None}, 0, "let applications join and leave, and change its options"},

	{JobView, [...]Level{All, All, All, Open, All}, 0, "see a job"},
	{JobCancel, [...]Level{All, All, All, Own, None}, 0, "cancel a job"},

	{HostView, [...]Level{All, All, All, Open, All}, 0, "see a host"},
	{HostUse, [...]Level{All, All, All, Open, None}, 0, "put clones and mounts on a host"},
	{HostManage, [...]Level{All, All, None, None, None}, 0, "let a host join, shut it out, and discover what is on it"},

	{PoolView, [...]Level{All, All, None, None, All}, 0, "see what the pool holds and saves"},
	{PoolVerify, [...]Level{All, All, None, None, None}, 0, "read and check what the pool holds"},
	{PoolManage, [...]Level{All, All, None, None, None}, 0, "reclaim space, and import another pool"},

	{SLAView, [...]Level{All, All, All, All, All}, common, "see SLA templates and profiles"},
	{SLAManage, [...]Level{All, All, None, None, None}, 0, "change SLA templates and profiles"},
	{WorkflowView, [...]Level{All, All, All, All, All}, common, "see workflows: of the URLs that their messages are posted to, scheme and host"},
	{WorkflowRun, [...]Level{All, All, All, Open, None}, 0, "run a workflow on an application or clone; its steps are decided as well"},
	{WorkflowManage, [...]Level{All, All, None, None, None}, 0, "change workflows, and so what they run, and see these URLs whole"},

	{TokenView, [...]Level{All, Own, Own, Own, All}, 0, "see that API tokens and sessions exist, never their secrets"},
	{TokenManage, [...]Level{All, Own, Own, Own, Own}, 0, "make and revoke API tokens and sessions, and change the password; never by a token"},
	{AccessView, [...]Level{All, None, None, None, All}, 0, "see users, groups and grants"},
	{AccessManage, [...]Level{All, None, None, None, None}, 0, "change users, groups and grants"},
	{AuditView, [...]Level{All, None, None, None, All}, 0, "read and verify the audit"},
	{WebhookView, [...]Level{All, None, None, None, All}, 0, "see webhooks: scheme and host of their URLs, and whether they are taken"},
	{WebhookManage, [...]Level{All, None, None, None, None}, 0, "add, change, try and remove webhooks, and see their URLs whole"},
	{ServerView, [...]Level{All, All, All, All, All}, common, "see the server's version and health"},
	{ServerManage, [...]Level{All, None, None, None, None}, 0, "change the server's settings"},
}

var entries = func() map[Action]*entry {
	m := make(map[Action]*entry, len(table))
	for i := range table {
		m[table[i].action] = &table[i]
	}
	return m
}()

// Actions returns all actions, grouped by what they act on.
func Actions() []Action {
	list := make([]Action, len(table))
	for i := range table {
		list[i] = table[i].action
	}
	return list
}

// Known reports whether a is in the list.
func (a Action) Known() bool { return entries[a] != nil }

// Means says in a few words what it is to do a; empty if a is not known.
func (a Action) Means() string {
	if e := entries[a]; e != nil {
		return e.means
	}
	return ""
}

// Takes reports that the data of a point comes out, so that [Limits.Points] holds.
func (a Action) Takes() bool { e := entries[a]; return e != nil && e.has(takes) }

// Kinds returns what a may be done to: the kind that its name begins with.
// A clone is an application, too; a workflow runs on either.
func (a Action) Kinds() []Kind {
	if !a.Known() {
		return nil
	}
	first, _, _ := strings.Cut(string(a), ".")
	switch {
	case a == WorkflowRun, Kind(first) == KindApplication:
		return []Kind{KindApplication, KindClone}
	}
	return []Kind{Kind(first)}
}

func (a Action) on(k Kind) bool { return slices.Contains(a.Kinds(), k) }

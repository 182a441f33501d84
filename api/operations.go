package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
	"tidemark/policy"
)

// The errors that most operations may be answered with.
var (
	wrong   = []tidemark.Kind{tidemark.Invalid}
	missing = []tidemark.Kind{tidemark.Invalid, tidemark.NotFound}
	refused = []tidemark.Kind{tidemark.Invalid, tidemark.NotFound, tidemark.Conflict, tidemark.Unavailable}
)

// table is the API: every operation that there is.
func table() (all []operation) {
	for _, part := range [][]operation{serverTable(), accessTable(), applicationTable(), slaTable(), groupTable(), hostTable(), volumeTable(), exportTable(), mountTable(), cloneTable(), liveTable(), pastTable(), poolTable(), jobTable(), workflowTable(), webhookTable()} {
		all = append(all, part...)
	}
	return all
}

func jobPath(id int64) string { return "/v1/jobs/" + formatInt(id) }

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

// sameName returns the name of the path, which a body may say, too.
func sameName(path name, body string) (string, error) {
	if body != "" && body != string(path) {
		return "", tidemark.Errorf(tidemark.Invalid, "the path speaks of %s, and the body of %s", path, body).WithHint("leave it out of the body")
	}
	return string(path), nil
}

func serverTable() []operation {
	return []operation{
		get(operation{id: "get-status", method: http.MethodGet, path: "/v1/status", tag: "Server", summary: "The state of the server",
			description: "Applications, mounts, clones, the newest jobs and events, the pool, and what an operator should look at now.",
			rule:        may(access.ServerView, access.KindServer)},
			seenStatus),
		get(operation{id: "list-sources", method: http.MethodGet, path: "/v1/sources", tag: "Server", summary: "What on a host could be protected",
			description: "PostgreSQL clusters, file systems and block devices. The list is whole: it has no parts.",
			errors:      refused, rule: may(access.HostManage, access.KindHost, "query.host")},
			func(ctx context.Context, c *control.Control, in *struct {
				Host string `query:"host" doc:"The host; missing: the server's own."`
			}) ([]tidemark.Discovered, error) {
				return c.Discover(ctx, tidemark.DiscoverSpec{Host: in.Host})
			}),
		raw(operation{id: "get-openapi", method: http.MethodGet, path: "/openapi.json", tag: "Server", summary: "This document",
			description: "The OpenAPI 3.1 document of the API.", rule: open},
			"application/json", (*server).sendDocument),
		raw(operation{id: "get-health", method: http.MethodGet, path: "/healthz", tag: "Server", summary: "Whether the server lives",
			description: "It is answered as long as the process runs.", rule: open},
			"text/plain", (*server).sendHealth),
		raw(operation{id: "get-readiness", method: http.MethodGet, path: "/readyz", tag: "Server", summary: "Whether requests can be answered",
			description: "They cannot while the catalog cannot be read.", errors: []tidemark.Kind{tidemark.Unavailable}, rule: open},
			"text/plain", (*server).sendReady),
		raw(operation{id: "get-metrics", method: http.MethodGet, path: "/metrics", tag: "Server", summary: "What Prometheus is told",
			description: "In the text format of Prometheus.", rule: may(access.PoolView, access.KindPool)},
			"text/plain", (*server).sendMetrics),
	}
}

func applicationTable() []operation {
	return []operation{
		list(operation{id: "list-applications", method: http.MethodGet, path: "/v1/applications", tag: "Applications", summary: "What is protected",
			description: "Applications and volumes, by name. Clones and mounts have lists of their own.", errors: wrong, rule: may(access.ApplicationView, access.KindApplication)},
			func(a tidemark.Application) string { return a.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Application, error) {
				return c.Applications(ctx)
			}),
		begin[tidemark.Application](operation{id: "protect-application", method: http.MethodPost, path: "/v1/applications", tag: "Applications", summary: "Make something an application",
			description: "A PostgreSQL cluster, a directory, a file or block device, with cdp also disks whose every write is to be journaled, or a virtual machine. Nothing is captured yet.",
			errors:      refused, rule: may(access.ApplicationProtect, access.KindApplication, "body.name").and(access.HostUse, access.KindHost, "body.host")},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.ProtectSpec]) (tidemark.Job, error) {
				if err := tidemark.CheckName(in.Body.Name); err != nil {
					return tidemark.Job{}, err
				}
				return c.Protect(ctx, in.Body)
			}),
		get(operation{id: "get-application", method: http.MethodGet, path: "/v1/applications/{name}", tag: "Applications", summary: "One application",
			description: "An application, volume, clone or mount.", errors: missing, rule: may(access.ApplicationView, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Application, error) {
				return c.Application(ctx, string(in.Name))
			}),
		begin[tidemark.Application](operation{id: "change-application", method: http.MethodPatch, path: "/v1/applications/{name}", tag: "Applications", summary: "Set the window of a volume or clone",
			description: "Of how much of its past any point can be had.", errors: refused, rule: may(access.ApplicationConfigure, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.ApplicationChange]) (tidemark.Job, error) {
				return c.Protect(ctx, tidemark.ProtectSpec{Source: string(in.Name), CDP: true, Window: in.Body.Window})
			}),
		do(operation{id: "unprotect-application", method: http.MethodDelete, path: "/v1/applications/{name}", tag: "Applications", summary: "End a protection and delete its points",
			description: "What only its points have is gone. Clones and mounts stay. A tapped disk is what it was, without Tidemark.",
			errors:      refused, rule: may(access.ApplicationProtect, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.Unprotect(ctx, string(in.Name))
			}),
		do(operation{id: "resync-application", method: http.MethodPost, path: "/v1/applications/{name}/resync", tag: "Applications", summary: "Send all of a tapped disk again",
			description: "For the case that somebody wrote to a disk itself while no tap stood in front of it, and it was not noticed. There are no points until it is done.",
			errors:      refused, rule: may(access.ApplicationCapture, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.Resync(ctx, string(in.Name))
			}),
		begin[tidemark.CaptureResult](operation{id: "capture-application", method: http.MethodPost, path: "/v1/applications/{name}/captures", tag: "Applications", summary: "Bring the changes of an application in",
			description: "Ends in a bookmark.", errors: refused, rule: may(access.ApplicationCapture, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.CaptureSpec]) (_ tidemark.Job, err error) {
				spec := tidemark.CaptureSpec{}
				if in.Body != nil {
					spec = *in.Body
				}
				if spec.Application, err = sameName(in.Name, spec.Application); err != nil {
					return tidemark.Job{}, err
				}
				return c.Capture(ctx, spec)
			}),
		create(operation{id: "bookmark-application", method: http.MethodPost, path: "/v1/applications/{name}/bookmarks", tag: "Applications", summary: "Mark now",
			description: "No data is copied. What is attached is made still for that moment.", errors: refused, rule: may(access.ApplicationBookmark, access.KindApplication, "path.name")},
			func(in *ofNameAndBody[tidemark.BookmarkSpec], p tidemark.RecoveryPoint) string {
				return "/v1/applications/" + string(in.Name) + "/points/" + strconv.FormatUint(uint64(p.Position), 10)
			},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.BookmarkSpec]) (p tidemark.RecoveryPoint, err error) {
				if in.Body.Application, err = sameName(in.Name, in.Body.Application); err != nil {
					return p, err
				}
				return c.Bookmark(ctx, in.Body)
			}),
		pointList(),
		get(operation{id: "get-point", method: http.MethodGet, path: "/v1/applications/{name}/points/{position}", tag: "Applications", summary: "One point of an application",
			description: "Position is that of the point, without the # of a reference.", errors: missing, rule: may(access.ApplicationPoints, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByName
				Position uint64 `path:"position" doc:"The position of the point."`
			}) (tidemark.RecoveryPoint, error) {
				return c.Point(ctx, string(in.Name), tidemark.Position(in.Position))
			}),
		get(operation{id: "expire-point", method: http.MethodDelete, path: "/v1/applications/{name}/points", tag: "Applications", summary: "Forget a point",
			description: "Its bytes are given back by a reclaim. The answer is what the point was.", errors: refused, rule: may(access.ApplicationExpire, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByName
				Point string `query:"point" required:"true" doc:"The one that is forgotten: a bookmark, #POSITION (as %23POSITION), a time, or latest."`
			}) (tidemark.RecoveryPoint, error) {
				return c.Expire(ctx, string(in.Name)+"@"+in.Point)
			}),
		get(operation{id: "get-intervals", method: http.MethodGet, path: "/v1/applications/{name}/intervals", tag: "Applications", summary: "The times of which any point can be had",
			description: "And those of which none can be had, and why.", errors: missing, rule: may(access.ApplicationPoints, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Intervals, error) {
				return c.Intervals(ctx, string(in.Name))
			}),
		with(operation{id: "list-proofs", method: http.MethodGet, path: "/v1/applications/{name}/proofs", tag: "Applications", summary: "The recovery proofs of points that are not kept",
			description: "Newest first. What is kept says itself whether it is proven.", status: http.StatusOK, errors: missing, rule: may(access.ApplicationPoints, access.KindApplication, "path.name")}, proofs),
	}
}

func pointList() operation {
	o := operation{id: "list-points", method: http.MethodGet, path: "/v1/applications/{name}/points", tag: "Applications", summary: "The points of an application",
		description: "Its bookmarks, oldest first.", status: http.StatusOK, errors: missing, rule: may(access.ApplicationPoints, access.KindApplication, "path.name")}
	return with(o, points)
}

// slaTable is what is promised.
func slaTable() []operation {
	return []operation{
		list(operation{id: "list-compliance", method: http.MethodGet, path: "/v1/compliance", tag: "SLA", summary: "Whether what is promised is kept",
			description: "For each application, by name: its template, the RPO and RTO that are promised and measured, and what is overdue.", errors: wrong, rule: may(access.ApplicationView, access.KindApplication)},
			func(x policy.Compliance) string { return x.Application },
			func(ctx context.Context, c *control.Control) ([]policy.Compliance, error) { return c.Compliance(ctx) }),
		do(operation{id: "set-sla", method: http.MethodPut, path: "/v1/applications/{name}/sla", tag: "SLA", summary: "Give an application or clone a template",
			description: "Or none, and nothing is promised to it any more.", errors: refused, rule: may(access.ApplicationConfigure, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.SLASpec]) error {
				name, err := sameName(in.Name, in.Body.Application)
				if err != nil {
					return err
				}
				return c.SetSLA(ctx, name, in.Body.Template)
			}),
		do(operation{id: "set-group-sla", method: http.MethodPut, path: "/v1/groups/{name}/sla", tag: "SLA", summary: "Give the members of a group a template",
			description: "Or none. Who joins later has it, too, who leaves has it no more, and a template of a member's own comes before it. It takes the right to give it to each member.",
			errors:      refused, rule: mayToAll(access.ApplicationConfigure, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.GroupSLASpec]) error {
				name, err := sameName(in.Name, in.Body.Group)
				if err != nil {
					return err
				}
				return c.SetGroupSLA(ctx, name, in.Body.Template)
			}),
		list(operation{id: "list-templates", method: http.MethodGet, path: "/v1/templates", tag: "SLA", summary: "SLA templates",
			description: "By name.", errors: wrong, rule: may(access.SLAView, access.KindSLA)},
			func(t policy.Template) string { return t.Name },
			func(ctx context.Context, c *control.Control) ([]policy.Template, error) { return c.Templates(ctx) }),
		do(operation{id: "remove-template", method: http.MethodDelete, path: "/v1/templates/{name}", tag: "SLA", summary: "Forget a template that no application and no group has",
			description: "Nothing else is changed.", errors: refused, rule: may(access.SLAManage, access.KindSLA, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveTemplate(ctx, string(in.Name))
			}),
		list(operation{id: "list-profiles", method: http.MethodGet, path: "/v1/profiles", tag: "SLA", summary: "Profiles",
			description: "Which say where copies go, and how many jobs of their applications run at a time; by name.", errors: wrong, rule: may(access.SLAView, access.KindSLA)},
			func(p policy.Profile) string { return p.Name },
			func(ctx context.Context, c *control.Control) ([]policy.Profile, error) { return c.Profiles(ctx) }),
		do(operation{id: "set-profile", method: http.MethodPut, path: "/v1/applications/{name}/profile", tag: "SLA", summary: "Give an application or clone a profile",
			description: "Or none.", errors: refused, rule: may(access.ApplicationConfigure, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.ProfileSpec]) error {
				name, err := sameName(in.Name, in.Body.Application)
				if err != nil {
					return err
				}
				return c.SetProfile(ctx, name, in.Body.Profile)
			}),
		do(operation{id: "remove-profile", method: http.MethodDelete, path: "/v1/profiles/{name}", tag: "SLA", summary: "Forget a profile that no application has",
			description: "Nothing else is changed.", errors: refused, rule: may(access.SLAManage, access.KindSLA, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveProfile(ctx, string(in.Name))
			}),
		applying(),
	}
}

// applying makes what is missing by jobs, which may wait.
func applying() operation {
	o := operation{id: "apply", method: http.MethodPost, path: "/v1/declarations", tag: "SLA", summary: "Make the server have what documents say",
		description: "Templates, profiles, applications, groups and workflows, in YAML. What none of them names is left alone; a document is the whole of what it names, and takes away what it leaves out. All of it is looked at before anything is changed. A workflow that is written otherwise than its newest version becomes a new one, whose schedule runs it by the rights of who applies it.",
		errors:      refused, queues: true, once: true,
		rule: may(access.SLAManage, access.KindSLA).and(access.ApplicationProtect, access.KindApplication).and(access.GroupManage, access.KindGroup).ofWorkflows(access.WorkflowManage, "body.documents")}
	return get(o, func(ctx context.Context, c *control.Control, in *ofBody[tidemark.ApplySpec]) (policy.Applied, error) {
		if in.Body.DryRun {
			callerOf(ctx).did = "a dry run"
		}
		return c.Apply(ctx, []byte(in.Body.Documents), in.Body.DryRun)
	})
}

func groupTable() []operation {
	return []operation{
		list(operation{id: "list-groups", method: http.MethodGet, path: "/v1/groups", tag: "Groups", summary: "Consistency groups",
			description: "Applications that are bookmarked in one moment, by name.", errors: wrong, rule: may(access.GroupView, access.KindGroup)},
			func(g tidemark.Group) string { return g.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Group, error) { return c.Groups(ctx) }),
		get(operation{id: "get-group", method: http.MethodGet, path: "/v1/groups/{name}", tag: "Groups", summary: "One consistency group",
			description: "With its members and options.", errors: missing, rule: may(access.GroupView, access.KindGroup, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Group, error) {
				return c.Group(ctx, string(in.Name))
			}),
		get(operation{id: "change-group", method: http.MethodPatch, path: "/v1/groups/{name}", tag: "Groups", summary: "Change the members and options of a group",
			description: "A group is there while it has members: it is made by its first, and goes with its last.", errors: refused, rule: may(access.GroupManage, access.KindGroup, "path.name").where("body.join", access.ApplicationConfigure, access.KindApplication, "body.join")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.GroupSpec]) (g tidemark.Group, err error) {
				if in.Body.Name, err = sameName(in.Name, in.Body.Name); err != nil {
					return g, err
				}
				return c.ChangeGroup(ctx, in.Body)
			}),
		create(operation{id: "bookmark-group", method: http.MethodPost, path: "/v1/groups/{name}/bookmarks", tag: "Groups", summary: "Mark one moment of all members",
			description: "No member has a write without the ones before it on the others.", errors: refused, rule: may(access.GroupBookmark, access.KindGroup, "path.name")},
			func(in *ofNameAndBody[tidemark.BookmarkSpec], _ tidemark.GroupPoint) string {
				return "/v1/groups/" + string(in.Name)
			},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.BookmarkSpec]) (p tidemark.GroupPoint, err error) {
				if in.Body.Application, err = sameName(in.Name, in.Body.Application); err != nil {
					return p, err
				}
				return c.BookmarkGroup(ctx, in.Body)
			}),
		begin[tidemark.GroupRestored](operation{id: "restore-group", method: http.MethodPost, path: "/v1/groups/{name}/restores", tag: "Groups", summary: "Take the disks of all members back to one moment",
			description: "In place, to a bookmark of the group, or a time. Nothing is written unless the disks of all members can be had.",
			errors:      refused, rule: may(access.GroupRestore, access.KindGroup, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.RestoreSpec]) (tidemark.Job, error) {
				group, _, _ := strings.Cut(in.Body.Ref, "@")
				if _, err := sameName(in.Name, group); err != nil {
					return tidemark.Job{}, err
				}
				return c.RestoreGroup(ctx, in.Body)
			}),
	}
}

func hostTable() []operation {
	return []operation{
		list(operation{id: "list-hosts", method: http.MethodGet, path: "/v1/hosts", tag: "Hosts", summary: "Hosts with an agent",
			description: "By name. The server's own is not among them.", errors: wrong, rule: may(access.HostView, access.KindHost)},
			func(h tidemark.Host) string { return h.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Host, error) {
				all, err := c.Hosts(ctx)
				for i := range all {
					if err == nil {
						err = seenOnHost(ctx, c, &all[i])
					}
				}
				return all, err
			}),
		addHost(),
		get(operation{id: "get-host", method: http.MethodGet, path: "/v1/hosts/{name}", tag: "Hosts", summary: "One host",
			description: "With the applications that are tapped there.", errors: missing, rule: may(access.HostView, access.KindHost, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Host, error) {
				h, err := c.Host(ctx, string(in.Name))
				if err == nil {
					err = seenOnHost(ctx, c, &h)
				}
				return h, err
			}),
		do(operation{id: "change-host", method: http.MethodPatch, path: "/v1/hosts/{name}", tag: "Hosts", summary: "Change what a host is granted",
			description: "How much goes over the network.", errors: refused, rule: may(access.HostManage, access.KindHost, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.HostChange]) (err error) {
				if in.Body.Name, err = sameName(in.Name, in.Body.Name); err != nil {
					return err
				}
				return c.SetHost(ctx, in.Body)
			}),
		do(operation{id: "remove-host", method: http.MethodDelete, path: "/v1/hosts/{name}", tag: "Hosts", summary: "Shut a host out",
			description: "Its agent is not let in any more, whatever certificate it has.", errors: refused, rule: may(access.HostManage, access.KindHost, "path.name")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByName
				Force bool `query:"force" doc:"Shut it out though disks are tapped there: their taps are left to themselves."`
			}) error {
				return c.RemoveHost(ctx, tidemark.HostRemoval{Name: string(in.Name), Force: in.Force})
			}),
	}
}

// addHost answers with a secret.
func addHost() operation {
	o := operation{id: "add-host", method: http.MethodPost, path: "/v1/hosts", tag: "Hosts", summary: "Let a host join",
		description: "The answer has a token for its agent, a secret, which can be used once. It is not kept: who asks again with the same key is refused.",
		errors:      refused, secret: true, rule: may(access.HostManage, access.KindHost, "body.name")}
	return create(o, func(in *ofBody[tidemark.HostSpec], _ tidemark.Invitation) string { return "/v1/hosts/" + in.Body.Name },
		func(ctx context.Context, c *control.Control, in *ofBody[tidemark.HostSpec]) (tidemark.Invitation, error) {
			return c.AddHost(ctx, in.Body)
		})
}

func volumeTable() []operation {
	return []operation{
		list(operation{id: "list-volumes", method: http.MethodGet, path: "/v1/volumes", tag: "Volumes", summary: "Block volumes that live on Tidemark",
			description: "By name, clones of them included.", errors: wrong, rule: may(access.ApplicationView, access.KindApplication)},
			func(v tidemark.VolumeInfo) string { return v.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.VolumeInfo, error) { return c.Volumes(ctx) }),
		create(operation{id: "create-volume", method: http.MethodPost, path: "/v1/volumes", tag: "Volumes", summary: "Make an empty volume",
			description: "It takes no space until it is written.", errors: refused, rule: may(access.ApplicationProtect, access.KindApplication, "body.name")},
			func(_ *ofBody[tidemark.VolumeSpec], v tidemark.VolumeInfo) string { return "/v1/volumes/" + v.Name },
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.VolumeSpec]) (tidemark.VolumeInfo, error) {
				return c.CreateVolume(ctx, in.Body)
			}),
		get(operation{id: "get-volume", method: http.MethodGet, path: "/v1/volumes/{name}", tag: "Volumes", summary: "One volume",
			description: "Or the disks of any other application, as one.", errors: missing, rule: may(access.ApplicationView, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.VolumeInfo, error) {
				return c.Volume(ctx, string(in.Name))
			}),
		do(operation{id: "remove-volume", method: http.MethodDelete, path: "/v1/volumes/{name}", tag: "Volumes", summary: "Delete a volume with all its points",
			description: "Clones of it stay.", errors: refused, rule: may(access.ApplicationProtect, access.KindApplication, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveVolume(ctx, string(in.Name))
			}),
		begin[tidemark.CaptureResult](operation{id: "import-volume", method: http.MethodPost, path: "/v1/volumes/{name}/imports", tag: "Volumes", summary: "Make a volume equal to a file or device",
			description: "Ends in a bookmark. The volume is made if there is none; later, only what differs is stored.", errors: refused, rule: may(access.ApplicationProtect, access.KindApplication, "path.name").and(access.HostManage, access.KindHost)},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.ImportSpec]) (_ tidemark.Job, err error) {
				if in.Body.Name, err = sameName(in.Name, in.Body.Name); err != nil {
					return tidemark.Job{}, err
				}
				return c.ImportVolume(ctx, in.Body)
			}),
	}
}

func exportTable() []operation {
	return []operation{
		list(operation{id: "list-exports", method: http.MethodGet, path: "/v1/exports", tag: "Exports", summary: "What is served over NBD",
			description: "By name.", errors: wrong, rule: may(access.ExportView, access.KindExport)},
			func(e tidemark.Export) string { return e.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Export, error) { return c.Exports(ctx) }),
		create(operation{id: "create-export", method: http.MethodPost, path: "/v1/exports", tag: "Exports", summary: "Serve a point over NBD",
			description: "Until the export is ended.", errors: refused, rule: may(access.ApplicationExport, access.KindApplication, "body.ref").where("body.listen", access.HostManage, access.KindHost).where("body.tls", access.HostManage, access.KindHost)},
			func(_ *ofBody[tidemark.ExportSpec], e tidemark.Export) string { return "/v1/exports/" + e.Name },
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.ExportSpec]) (tidemark.Export, error) {
				return c.Export(ctx, in.Body)
			}),
		get(operation{id: "get-export", method: http.MethodGet, path: "/v1/exports/{name}", tag: "Exports", summary: "One export",
			description: "With its URI.", errors: missing, rule: may(access.ExportView, access.KindExport, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Export, error) {
				return c.Exported(ctx, string(in.Name))
			}),
		do(operation{id: "remove-export", method: http.MethodDelete, path: "/v1/exports/{name}", tag: "Exports", summary: "End an export",
			description: "Who is connected is cut off.", errors: refused, rule: may(access.ExportRemove, access.KindExport, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.Unexport(ctx, string(in.Name))
			}),
	}
}

func mountTable() []operation {
	return []operation{
		list(operation{id: "list-mounts", method: http.MethodGet, path: "/v1/mounts", tag: "Mounts", summary: "Points that are disks of a host",
			description: "By name.", errors: wrong, rule: may(access.MountView, access.KindMount)},
			func(m tidemark.Mount) string { return m.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Mount, error) { return c.Mounts(ctx) }),
		create(operation{id: "create-mount", method: http.MethodPost, path: "/v1/mounts", tag: "Mounts", summary: "Make a point a disk of a host",
			description: "And mount its file system, if a directory is named. What is written goes to the mount, never to the point.", errors: refused, rule: may(access.ApplicationMount, access.KindApplication, "body.ref").and(access.HostUse, access.KindHost, "body.host").where("body.path", access.HostManage, access.KindHost, "body.host")},
			func(_ *ofBody[tidemark.MountSpec], m tidemark.Mount) string { return "/v1/mounts/" + m.Name },
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.MountSpec]) (tidemark.Mount, error) {
				return c.Mount(ctx, in.Body)
			}),
		get(operation{id: "get-mount", method: http.MethodGet, path: "/v1/mounts/{name}", tag: "Mounts", summary: "One mount",
			description: "With its device and directory.", errors: missing, rule: may(access.MountView, access.KindMount, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Mount, error) {
				return c.Mounted(ctx, string(in.Name))
			}),
		do(operation{id: "remove-mount", method: http.MethodDelete, path: "/v1/mounts/{name}", tag: "Mounts", summary: "Take a mount back",
			description: "What was written to it is gone.", errors: refused, rule: may(access.MountRemove, access.KindMount, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.Unmount(ctx, string(in.Name))
			}),
	}
}

func cloneTable() []operation {
	return []operation{
		list(operation{id: "list-clones", method: http.MethodGet, path: "/v1/clones", tag: "Clones", summary: "Thin writable copies",
			description: "By name.", errors: wrong, rule: may(access.CloneView, access.KindClone)},
			func(k tidemark.Clone) string { return k.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Clone, error) {
				all, err := c.Clones(ctx)
				if err != nil {
					return nil, err
				}
				return all, withoutWay(ctx, c, all)
			}),
		begin[tidemark.Clone](operation{id: "create-clone", method: http.MethodPost, path: "/v1/clones", tag: "Clones", summary: "Make a thin writable copy",
			description: "With its application up.", errors: refused, rule: may(access.ApplicationClone, access.KindApplication, "body.ref").and(access.HostUse, access.KindHost, "body.host").where("body.preparation", access.ApplicationPublish, access.KindApplication, "body.ref")},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.CloneSpec]) (tidemark.Job, error) {
				return c.Clone(ctx, in.Body)
			}),
		get(operation{id: "get-clone", method: http.MethodGet, path: "/v1/clones/{name}", tag: "Clones", summary: "One clone",
			description: "With how to reach it.", errors: missing, rule: may(access.CloneView, access.KindClone, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Clone, error) {
				k, err := c.Cloned(ctx, string(in.Name))
				if err != nil {
					return k, err
				}
				one := []tidemark.Clone{k}
				err = withoutWay(ctx, c, one)
				return one[0], err
			}),
		do(operation{id: "remove-clone", method: http.MethodDelete, path: "/v1/clones/{name}", tag: "Clones", summary: "Stop a clone and delete it",
			description: "Clones of it stay.", errors: refused, rule: may(access.CloneRemove, access.KindClone, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveClone(ctx, string(in.Name))
			}),
		get(operation{id: "extend-clone", method: http.MethodPut, path: "/v1/clones/{name}/expiry", tag: "Clones", summary: "Say how long a clone lives",
			description: "From now on; then it is removed by itself. The answer is the clone.", errors: refused, rule: may(access.CloneExtend, access.KindClone, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.Extension]) (tidemark.Clone, error) {
				if _, err := c.Extend(ctx, string(in.Name), time.Duration(in.Body.Lifetime)*time.Second); err != nil {
					return tidemark.Clone{}, err
				}
				return c.Cloned(ctx, string(in.Name))
			}),
		get(operation{id: "share-clone", method: http.MethodPut, path: "/v1/clones/{name}/shares", tag: "Clones", summary: "Share a clone",
			description: "With users and groups of users, and nobody else any more. They see it and may use it, if they have rights over what it was made of; the answer notes who has none.",
			errors:      refused, rule: may(access.CloneShare, access.KindClone, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[access.ShareSpec]) (access.Shared, error) {
				return c.Share(ctx, string(in.Name), in.Body.With)
			}),
		begin[tidemark.Clone](operation{id: "refresh-clone", method: http.MethodPost, path: "/v1/clones/{name}/refreshes", tag: "Clones", summary: "Make a clone anew from its source",
			description: "Under the same name and port. What was written to it is gone.", errors: refused, rule: may(access.CloneRefresh, access.KindClone, "path.name").ofSource(access.ApplicationClone, "", "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.RefreshSpec]) (_ tidemark.Job, err error) {
				spec := tidemark.RefreshSpec{}
				if in.Body != nil {
					spec = *in.Body
				}
				if spec.Name, err = sameName(in.Name, spec.Name); err != nil {
					return tidemark.Job{}, err
				}
				return c.Refresh(ctx, spec)
			}),
	}
}

// pastTable is what is done with points that makes nothing of a name.
func pastTable() []operation {
	return []operation{
		begin[tidemark.Rewound](operation{id: "rewind", method: http.MethodPost, path: "/v1/rewinds", tag: "Points", summary: "Make a clone or volume again what it was, in place",
			description: "What it held until now is kept as a bookmark.", errors: refused, rule: may(access.CloneRewind, access.KindClone, "body.ref").orOf(access.ApplicationRestore)},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.RewindSpec]) (tidemark.Job, error) {
				return c.Rewind(ctx, in.Body)
			}),
		begin[tidemark.Proof](operation{id: "prove", method: http.MethodPost, path: "/v1/proofs", tag: "Points", summary: "Bring a point up in a sandbox and check it",
			description: "The point is stamped with what was found, and with how long the recovery took. The sandbox has no network, and is thrown away.", errors: refused, rule: may(access.ApplicationProve, access.KindApplication, "body.ref")},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.ProveSpec]) (tidemark.Job, error) {
				return c.Prove(ctx, in.Body)
			}),
		begin[tidemark.Restored](operation{id: "restore", method: http.MethodPost, path: "/v1/restores", tag: "Points", summary: "Write a point to a file, a device or a directory",
			description: "Or, in place, to the tapped disks themselves; then the result has also before and changed_bytes.", errors: refused, rule: may(access.ApplicationRestore, access.KindApplication, "body.ref").where("body.to", access.HostManage, access.KindHost)},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.RestoreSpec]) (tidemark.Job, error) {
				return c.Restore(ctx, in.Body)
			}),
		get(operation{id: "diff", method: http.MethodPost, path: "/v1/diffs", tag: "Points", summary: "What differs between two points",
			description: "Nothing is made of it: it is a POST because references are long.", errors: refused, rule: may(access.ApplicationPoints, access.KindApplication, "body.a", "body.b")},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.DiffSpec]) (tidemark.Diff, error) {
				return c.Diff(ctx, in.Body)
			}),
		get(operation{id: "halve", method: http.MethodPost, path: "/v1/halves", tag: "Points", summary: "The step halfway between a good point and a bad one",
			description: "One step of a bisection. Nothing is made of it: it is a POST because what is skipped may be long.", errors: refused, rule: may(access.ApplicationPoints, access.KindApplication, "body.application")},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.HalveSpec]) (tidemark.Halves, error) {
				return c.Halve(ctx, in.Body)
			}),
	}
}

func poolTable() []operation {
	return []operation{
		get(operation{id: "get-pool", method: http.MethodGet, path: "/v1/pool", tag: "Pool", summary: "The pool that images rest in",
			description: "What it holds, and what it saves.", rule: may(access.PoolView, access.KindPool)},
			func(ctx context.Context, c *control.Control, _ *none) (tidemark.PoolStatus, error) {
				return c.Pool(ctx)
			}),
		begin[tidemark.ReclaimResult](operation{id: "reclaim", method: http.MethodPost, path: "/v1/pool/reclaim", tag: "Pool", summary: "Give back the bytes that no point needs",
			description: "Captures, clones and reads go on meanwhile.", errors: refused, rule: may(access.PoolManage, access.KindPool)},
			func(ctx context.Context, c *control.Control, _ *none) (tidemark.Job, error) { return c.Reclaim(ctx) }),
		begin[tidemark.VerifyResult](operation{id: "verify", method: http.MethodPost, path: "/v1/pool/verify", tag: "Pool", summary: "Read and hash what is stored",
			description: "All of it, or all of one application or point.", errors: refused, rule: may(access.PoolVerify, access.KindPool)},
			func(ctx context.Context, c *control.Control, in *struct{ Body *tidemark.VerifySpec }) (tidemark.Job, error) {
				if in.Body == nil {
					return c.Verify(ctx, "")
				}
				return c.Verify(ctx, in.Body.Ref)
			}),
		begin[tidemark.ImportResult](operation{id: "import-pool", method: http.MethodPost, path: "/v1/pool/import", tag: "Pool", summary: "Bring all images of another data directory in",
			description: "Into a server that has none.", errors: refused, rule: may(access.PoolManage, access.KindPool)},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.PoolImport]) (tidemark.Job, error) {
				return c.ImportPool(ctx, in.Body.Path)
			}),
		do(operation{id: "forget-timeline", method: http.MethodDelete, path: "/v1/timelines/{name}", tag: "Pool", summary: "Delete what is left of a timeline that cannot be opened",
			description: "Its name is the ID that a verify names it with. Until such timelines are brought back or forgotten, nothing is reclaimed.",
			errors:      refused, rule: may(access.PoolManage, access.KindPool, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error { return c.Forget(ctx, string(in.Name)) }),
	}
}

// maxWait bounds how long a request for a job waits.
const maxWait = 30 * time.Second

func jobTable() []operation {
	return []operation{
		with(operation{id: "list-jobs", method: http.MethodGet, path: "/v1/jobs", tag: "Jobs", summary: "Long work, newest first",
			description: "What is queued, what runs, and what has ended.", status: http.StatusOK, errors: wrong, apart: true, filtered: true, rule: may(access.JobView, access.KindJob)}, jobs),
		get(operation{id: "get-job", method: http.MethodGet, path: "/v1/jobs/{id}", tag: "Jobs", summary: "One job",
			description: "With its progress, and when it has ended with its result or error.", errors: missing, apart: true, rule: may(access.JobView, access.KindJob, "path.id")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByID
				Wait string `query:"wait" doc:"Wait so long for it to end, such as 10s; at most 30s."`
			}) (tidemark.Job, error) {
				wait, err := waitOf(in.Wait)
				if err != nil {
					return tidemark.Job{}, err
				}
				j, err := c.Job(ctx, in.ID, wait)
				if err == nil {
					err = hideWay(ctx, c, &j) // before j is returned
				}
				return j, err
			}),
		with(operation{id: "follow-job", method: http.MethodGet, path: "/v1/jobs/{id}/events", tag: "Jobs", summary: "A job as it goes on",
			description: "Server-sent events until it has ended: progress, and at last end, each with the job as data.", status: http.StatusOK, errors: missing, apart: true, stream: true, sends: sending[tidemark.Job]("progress", "end"), rule: may(access.JobView, access.KindJob, "path.id")}, followJob),
		cancelJob(),
		with(operation{id: "list-events", method: http.MethodGet, path: "/v1/events", tag: "Jobs", summary: "What happened, newest first",
			description: "What an operator may want to know. The newest 100,000 are kept.", status: http.StatusOK, errors: wrong, apart: true, rule: may(access.ServerView, access.KindServer)}, events),
		with(operation{id: "follow-events", method: http.MethodGet, path: "/v1/events/stream", tag: "Jobs", summary: "What happens, as it happens",
			description: "Server-sent events without end: info, warning and error, each with an event as data and its number as id. Last-Event-ID resumes.", status: http.StatusOK, errors: wrong, apart: true, stream: true, sends: sending[tidemark.Event]("info", "warning", "error"), rule: may(access.ServerView, access.KindServer)}, followEvents),
		followingChanges(),
	}
}

func waitOf(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, tidemark.Errorf(tidemark.Invalid, "wait is %q, which is no time", text).WithHint("write 10s")
	}
	return min(d, maxWait), nil
}

func cancelJob() operation {
	o := operation{id: "cancel-job", method: http.MethodPost, path: "/v1/jobs/{id}/cancel", tag: "Jobs", summary: "Cut a job",
		description: "What it has half done is undone. The answer is the job as it is then, which may be still at that.", status: http.StatusAccepted, errors: refused, apart: true, rule: may(access.JobCancel, access.KindJob, "path.id")}
	return with(o, func(ctx context.Context, c *control.Control, in *ByID) (*answer[tidemark.Job], error) {
		if err := c.CancelJob(ctx, in.ID); err != nil {
			return nil, err
		}
		j, err := c.Job(ctx, in.ID, 0)
		return &answer[tidemark.Job]{Body: j}, err
	})
}

package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"tidemark"
	"tidemark/policy"
)

// get asks for facts.
func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	err = c.do(ctx, http.MethodGet, path, nil, &v)
	return v, err
}

// post asks for something to be made or done.
func post[T any](ctx context.Context, c *Client, path string, req any) (v T, err error) {
	err = c.do(ctx, http.MethodPost, path, req, &v)
	return v, err
}

// begin asks for long work.
func begin(ctx context.Context, c *Client, path string, req any) (tidemark.Job, error) {
	return post[tidemark.Job](ctx, c, c.queued(path), req)
}

// queued is the path by which jobs wait, if they are to.
func (c *Client) queued(path string) string {
	if c.Queue {
		path += "?queue=true"
	}
	return path
}

// Status describes the server.
func (c *Client) Status(ctx context.Context) (tidemark.Status, error) {
	return get[tidemark.Status](ctx, c, "/v1/status")
}

// Sources lists what on a host could be protected; "" is the server's own.
func (c *Client) Sources(ctx context.Context, host string) ([]tidemark.Discovered, error) {
	return get[[]tidemark.Discovered](ctx, c, "/v1/sources?"+url.Values{"host": {host}}.Encode())
}

// OpenAPI returns the OpenAPI document of the server.
func (c *Client) OpenAPI(ctx context.Context) (map[string]any, error) {
	return get[map[string]any](ctx, c, "/openapi.json")
}

// Alive returns an error if the server does not live.
func (c *Client) Alive(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Ready returns an error while the server cannot answer requests.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil)
}

// Metrics returns what the server tells Prometheus, in its text format.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	return c.text(ctx, "/metrics")
}

// text asks for what is no JSON.
func (c *Client) text(ctx context.Context, path string) (string, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// Applications lists applications and volumes, by name.
func (c *Client) Applications(ctx context.Context) iter.Seq2[tidemark.Application, error] {
	return list[tidemark.Application](ctx, c, "/v1/applications", nil)
}

// Application describes an application, volume, clone or mount.
func (c *Client) Application(ctx context.Context, name string) (tidemark.Application, error) {
	return get[tidemark.Application](ctx, c, path("/v1/applications/%s", name))
}

// Protect makes something an application. The result is a [tidemark.Application].
func (c *Client) Protect(ctx context.Context, spec tidemark.ProtectSpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/applications", spec)
}

// ChangeApplication sets the window of a volume or clone. The result is a [tidemark.Application].
func (c *Client) ChangeApplication(ctx context.Context, name string, change tidemark.ApplicationChange) (j tidemark.Job, err error) {
	err = c.do(ctx, http.MethodPatch, path("/v1/applications/%s", name), change, &j)
	return j, err
}

// Unprotect ends a protection, and deletes its points.
func (c *Client) Unprotect(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/applications/%s", name), nil, nil)
}

// Resync sends all of a tapped application's disks again.
func (c *Client) Resync(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, path("/v1/applications/%s/resync", name), nil, nil)
}

// Capture brings the changes of an application in. The result is a [tidemark.CaptureResult].
func (c *Client) Capture(ctx context.Context, spec tidemark.CaptureSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/applications/%s/captures", spec.Application), spec)
}

// Bookmark marks the present of an application.
func (c *Client) Bookmark(ctx context.Context, spec tidemark.BookmarkSpec) (tidemark.RecoveryPoint, error) {
	return post[tidemark.RecoveryPoint](ctx, c, path("/v1/applications/%s/bookmarks", spec.Application), spec)
}

// Points lists the points of an application, oldest first.
func (c *Client) Points(ctx context.Context, name string) iter.Seq2[tidemark.RecoveryPoint, error] {
	return list[tidemark.RecoveryPoint](ctx, c, path("/v1/applications/%s/points", name), nil)
}

// Point describes the point of an application at a position.
func (c *Client) Point(ctx context.Context, name string, at tidemark.Position) (tidemark.RecoveryPoint, error) {
	return get[tidemark.RecoveryPoint](ctx, c, path("/v1/applications/%s/points/%s", name, strconv.FormatUint(uint64(at), 10)))
}

// Expire forgets a point of an application, and returns what it was.
func (c *Client) Expire(ctx context.Context, ref tidemark.Ref) (p tidemark.RecoveryPoint, err error) {
	err = c.do(ctx, http.MethodDelete, path("/v1/applications/%s/points", ref.App)+"?point="+url.QueryEscape(ref.Point.String()), nil, &p)
	return p, err
}

// Intervals says of which times of an application any point can be had.
func (c *Client) Intervals(ctx context.Context, name string) (tidemark.Intervals, error) {
	return get[tidemark.Intervals](ctx, c, path("/v1/applications/%s/intervals", name))
}

// Proofs lists the recovery proofs of an application's points that are not kept, newest first.
func (c *Client) Proofs(ctx context.Context, name string) iter.Seq2[tidemark.Proof, error] {
	return list[tidemark.Proof](ctx, c, path("/v1/applications/%s/proofs", name), nil)
}

// SetSLA gives an application or clone a template of what is promised to it, or none.
func (c *Client) SetSLA(ctx context.Context, spec tidemark.SLASpec) error {
	return c.do(ctx, http.MethodPut, path("/v1/applications/%s/sla", spec.Application), spec, nil)
}

// SetGroupSLA gives the members of a group a template of what is promised to them, or none.
func (c *Client) SetGroupSLA(ctx context.Context, spec tidemark.GroupSLASpec) error {
	return c.do(ctx, http.MethodPut, path("/v1/groups/%s/sla", spec.Group), spec, nil)
}

// Compliance says of each application whether what is promised to it is kept.
func (c *Client) Compliance(ctx context.Context) iter.Seq2[policy.Compliance, error] {
	return list[policy.Compliance](ctx, c, "/v1/compliance", nil)
}

// Templates lists SLA templates, by name.
func (c *Client) Templates(ctx context.Context) iter.Seq2[policy.Template, error] {
	return list[policy.Template](ctx, c, "/v1/templates", nil)
}

// Profiles lists profiles, by name.
func (c *Client) Profiles(ctx context.Context) iter.Seq2[policy.Profile, error] {
	return list[policy.Profile](ctx, c, "/v1/profiles", nil)
}

// SetProfile gives an application or clone a profile, or none.
func (c *Client) SetProfile(ctx context.Context, spec tidemark.ProfileSpec) error {
	return c.do(ctx, http.MethodPut, path("/v1/applications/%s/profile", spec.Application), spec, nil)
}

// RemoveProfile forgets a profile that no application has.
func (c *Client) RemoveProfile(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/profiles/%s", name), nil, nil)
}

// RemoveTemplate forgets a template that no application has.
func (c *Client) RemoveTemplate(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/templates/%s", name), nil, nil)
}

// Apply makes the server have what documents say.
func (c *Client) Apply(ctx context.Context, spec tidemark.ApplySpec) (policy.Applied, error) {
	return post[policy.Applied](ctx, c, c.queued("/v1/declarations"), spec)
}

// Workflows lists the newest version of each workflow, by name.
func (c *Client) Workflows(ctx context.Context) iter.Seq2[tidemark.Workflow, error] {
	return list[tidemark.Workflow](ctx, c, "/v1/workflows", nil)
}

// Workflow returns a version of a workflow; 0 is the newest.
func (c *Client) Workflow(ctx context.Context, name string, version int64) (tidemark.Workflow, error) {
	p := path("/v1/workflows/%s", name)
	if version != 0 {
		p += "?version=" + strconv.FormatInt(version, 10)
	}
	return get[tidemark.Workflow](ctx, c, p)
}

// ApplyWorkflow makes a document the newest version of a workflow.
func (c *Client) ApplyWorkflow(ctx context.Context, spec tidemark.WorkflowSpec) (tidemark.Workflow, error) {
	return post[tidemark.Workflow](ctx, c, "/v1/workflows", spec)
}

// RemoveWorkflow removes a workflow with its schedule.
func (c *Client) RemoveWorkflow(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/workflows/%s", name), nil, nil)
}

// PlanWorkflow says what a run of a workflow would do.
func (c *Client) PlanWorkflow(ctx context.Context, name string, spec tidemark.RunSpec) (tidemark.WorkflowRun, error) {
	return post[tidemark.WorkflowRun](ctx, c, path("/v1/workflows/%s/plans", name), spec)
}

// RunWorkflow runs a workflow. The result of the job is a [tidemark.RunResult].
func (c *Client) RunWorkflow(ctx context.Context, name string, spec tidemark.RunSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/workflows/%s/runs", name), spec)
}

// Runs lists the newest runs of a workflow, newest first; an empty name lists those of all.
func (c *Client) Runs(ctx context.Context, workflow string) iter.Seq2[tidemark.WorkflowRun, error] {
	return list[tidemark.WorkflowRun](ctx, c, "/v1/workflow-runs", only("workflow", workflow))
}

// Run returns a run of a workflow, by the number of its job.
func (c *Client) Run(ctx context.Context, id int64) (tidemark.WorkflowRun, error) {
	return get[tidemark.WorkflowRun](ctx, c, path("/v1/workflow-runs/%s", strconv.FormatInt(id, 10)))
}

// Webhooks lists where events are posted to, by name.
func (c *Client) Webhooks(ctx context.Context) iter.Seq2[tidemark.Webhook, error] {
	return list[tidemark.Webhook](ctx, c, "/v1/webhooks", nil)
}

// Webhook describes a webhook.
func (c *Client) Webhook(ctx context.Context, name string) (tidemark.Webhook, error) {
	return get[tidemark.Webhook](ctx, c, path("/v1/webhooks/%s", name))
}

// AddWebhook has events posted to a URL.
func (c *Client) AddWebhook(ctx context.Context, spec tidemark.WebhookSpec) (tidemark.Webhook, error) {
	return post[tidemark.Webhook](ctx, c, "/v1/webhooks", spec)
}

// ChangeWebhook makes a webhook other than it is.
func (c *Client) ChangeWebhook(ctx context.Context, name string, change tidemark.WebhookChange) (w tidemark.Webhook, err error) {
	err = c.do(ctx, http.MethodPatch, path("/v1/webhooks/%s", name), change, &w)
	return w, err
}

// RemoveWebhook ends a webhook.
func (c *Client) RemoveWebhook(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/webhooks/%s", name), nil, nil)
}

// TestWebhook posts a message to a webhook now, and says what became of it.
func (c *Client) TestWebhook(ctx context.Context, name string) (tidemark.WebhookTest, error) {
	return post[tidemark.WebhookTest](ctx, c, path("/v1/webhooks/%s/tests", name), nil)
}

// Groups lists consistency groups, by name.
func (c *Client) Groups(ctx context.Context) iter.Seq2[tidemark.Group, error] {
	return list[tidemark.Group](ctx, c, "/v1/groups", nil)
}

// Group describes a consistency group.
func (c *Client) Group(ctx context.Context, name string) (tidemark.Group, error) {
	return get[tidemark.Group](ctx, c, path("/v1/groups/%s", name))
}

// ChangeGroup changes the members and options of a group.
func (c *Client) ChangeGroup(ctx context.Context, spec tidemark.GroupSpec) (g tidemark.Group, err error) {
	err = c.do(ctx, http.MethodPatch, path("/v1/groups/%s", spec.Name), spec, &g)
	return g, err
}

// BookmarkGroup marks one moment of all members of a group.
func (c *Client) BookmarkGroup(ctx context.Context, spec tidemark.BookmarkSpec) (tidemark.GroupPoint, error) {
	return post[tidemark.GroupPoint](ctx, c, path("/v1/groups/%s/bookmarks", spec.Application), spec)
}

// RestoreGroup takes the disks of all members of a group back. The result is a [tidemark.GroupRestored].
func (c *Client) RestoreGroup(ctx context.Context, group string, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/groups/%s/restores", group), spec)
}

// Hosts lists the hosts that have an agent, by name.
func (c *Client) Hosts(ctx context.Context) iter.Seq2[tidemark.Host, error] {
	return list[tidemark.Host](ctx, c, "/v1/hosts", nil)
}

// Host describes a host.
func (c *Client) Host(ctx context.Context, name string) (tidemark.Host, error) {
	return get[tidemark.Host](ctx, c, path("/v1/hosts/%s", name))
}

// AddHost lets a host join. What it returns has a secret.
func (c *Client) AddHost(ctx context.Context, spec tidemark.HostSpec) (tidemark.Invitation, error) {
	return post[tidemark.Invitation](ctx, c, "/v1/hosts", spec)
}

// ChangeHost changes what the server grants a host.
func (c *Client) ChangeHost(ctx context.Context, change tidemark.HostChange) error {
	return c.do(ctx, http.MethodPatch, path("/v1/hosts/%s", change.Name), change, nil)
}

// RemoveHost shuts a host out.
func (c *Client) RemoveHost(ctx context.Context, r tidemark.HostRemoval) error {
	return c.do(ctx, http.MethodDelete, path("/v1/hosts/%s", r.Name)+"?force="+strconv.FormatBool(r.Force), nil, nil)
}

// Volumes lists volumes, by name.
func (c *Client) Volumes(ctx context.Context) iter.Seq2[tidemark.VolumeInfo, error] {
	return list[tidemark.VolumeInfo](ctx, c, "/v1/volumes", nil)
}

// Volume describes a volume, or the disks of any other application as one.
func (c *Client) Volume(ctx context.Context, name string) (tidemark.VolumeInfo, error) {
	return get[tidemark.VolumeInfo](ctx, c, path("/v1/volumes/%s", name))
}

// CreateVolume makes an empty volume.
func (c *Client) CreateVolume(ctx context.Context, spec tidemark.VolumeSpec) (tidemark.VolumeInfo, error) {
	return post[tidemark.VolumeInfo](ctx, c, "/v1/volumes", spec)
}

// RemoveVolume deletes a volume with all its points.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/volumes/%s", name), nil, nil)
}

// ImportVolume makes a volume equal to a file or device. The result is a [tidemark.CaptureResult].
func (c *Client) ImportVolume(ctx context.Context, spec tidemark.ImportSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/volumes/%s/imports", spec.Name), spec)
}

// Exports lists what is served over NBD, by name.
func (c *Client) Exports(ctx context.Context) iter.Seq2[tidemark.Export, error] {
	return list[tidemark.Export](ctx, c, "/v1/exports", nil)
}

// FindExport describes an export.
func (c *Client) FindExport(ctx context.Context, name string) (tidemark.Export, error) {
	return get[tidemark.Export](ctx, c, path("/v1/exports/%s", name))
}

// Export serves a point over NBD.
func (c *Client) Export(ctx context.Context, spec tidemark.ExportSpec) (tidemark.Export, error) {
	return post[tidemark.Export](ctx, c, "/v1/exports", spec)
}

// Unexport ends an export.
func (c *Client) Unexport(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/exports/%s", name), nil, nil)
}

// Mounts lists mounts, by name.
func (c *Client) Mounts(ctx context.Context) iter.Seq2[tidemark.Mount, error] {
	return list[tidemark.Mount](ctx, c, "/v1/mounts", nil)
}

// FindMount describes a mount.
func (c *Client) FindMount(ctx context.Context, name string) (tidemark.Mount, error) {
	return get[tidemark.Mount](ctx, c, path("/v1/mounts/%s", name))
}

// Mount makes a point a disk of the server's host.
func (c *Client) Mount(ctx context.Context, spec tidemark.MountSpec) (tidemark.Mount, error) {
	return post[tidemark.Mount](ctx, c, "/v1/mounts", spec)
}

// Unmount takes a mount back.
func (c *Client) Unmount(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/mounts/%s", name), nil, nil)
}

// Clones lists clones, by name.
func (c *Client) Clones(ctx context.Context) iter.Seq2[tidemark.Clone, error] {
	return list[tidemark.Clone](ctx, c, "/v1/clones", nil)
}

// FindClone describes a clone.
func (c *Client) FindClone(ctx context.Context, name string) (tidemark.Clone, error) {
	return get[tidemark.Clone](ctx, c, path("/v1/clones/%s", name))
}

// Clone makes a thin writable copy. The result is a [tidemark.Clone].
func (c *Client) Clone(ctx context.Context, spec tidemark.CloneSpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/clones", spec)
}

// RemoveClone stops a clone and deletes it.
func (c *Client) RemoveClone(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/clones/%s", name), nil, nil)
}

// Refresh makes a clone anew from its source. The result is a [tidemark.Clone].
func (c *Client) Refresh(ctx context.Context, spec tidemark.RefreshSpec) (tidemark.Job, error) {
	return begin(ctx, c, path("/v1/clones/%s/refreshes", spec.Name), spec)
}

// Rewind makes a clone or volume again what it was, in place. The result is a [tidemark.Rewound].
func (c *Client) Rewind(ctx context.Context, spec tidemark.RewindSpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/rewinds", spec)
}

// Prove brings a point up in a sandbox and checks it. The result is a [tidemark.Proof].
func (c *Client) Prove(ctx context.Context, spec tidemark.ProveSpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/proofs", spec)
}

// Restore writes a point to a file, a device or a directory. The result is a [tidemark.Restored], or, in place, a [tidemark.RestoredInPlace].
func (c *Client) Restore(ctx context.Context, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/restores", spec)
}

// Diff lists what differs between two points.
func (c *Client) Diff(ctx context.Context, spec tidemark.DiffSpec) (tidemark.Diff, error) {
	return post[tidemark.Diff](ctx, c, "/v1/diffs", spec)
}

// Halve returns the step halfway between a good point and a bad one.
func (c *Client) Halve(ctx context.Context, spec tidemark.HalveSpec) (tidemark.Halves, error) {
	return post[tidemark.Halves](ctx, c, "/v1/halves", spec)
}

// Pool describes the pool.
func (c *Client) Pool(ctx context.Context) (tidemark.PoolStatus, error) {
	return get[tidemark.PoolStatus](ctx, c, "/v1/pool")
}

// Reclaim gives back the bytes that no point needs. The result is a [tidemark.ReclaimResult].
func (c *Client) Reclaim(ctx context.Context) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/pool/reclaim", nil)
}

// Verify reads and hashes what is stored. The result is a [tidemark.VerifyResult].
func (c *Client) Verify(ctx context.Context, spec tidemark.VerifySpec) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/pool/verify", spec)
}

// ImportPool brings all images of another data directory in. The result is a [tidemark.ImportResult].
func (c *Client) ImportPool(ctx context.Context, spec tidemark.PoolImport) (tidemark.Job, error) {
	return begin(ctx, c, "/v1/pool/import", spec)
}

// Forget deletes what is left of a timeline that cannot be opened.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/timelines/%s", id), nil, nil)
}

// Jobs lists the jobs that a filter lets through, newest first.
func (c *Client) Jobs(ctx context.Context, f tidemark.JobFilter) iter.Seq2[tidemark.Job, error] {
	also := url.Values{}
	for _, s := range f.States {
		also.Add("state", string(s))
	}
	for k, v := range map[string]string{"kind": f.Kind, "application": f.Application} {
		if v != "" {
			also.Set(k, v)
		}
	}
	return list[tidemark.Job](ctx, c, "/v1/jobs", also)
}

// Job returns a job as it is now.
func (c *Client) Job(ctx context.Context, id int64) (tidemark.Job, error) {
	return get[tidemark.Job](ctx, c, jobPath(id))
}

// Cancel cuts a job. It has not ended yet when Cancel returns.
func (c *Client) Cancel(ctx context.Context, id int64) error {
	return c.do(ctx, http.MethodPost, jobPath(id)+"/cancel", nil, nil)
}

// Events lists what happened, newest first.
func (c *Client) Events(ctx context.Context) iter.Seq2[tidemark.Event, error] {
	return list[tidemark.Event](ctx, c, "/v1/events", nil)
}

func jobPath(id int64) string { return path("/v1/jobs/%s", strconv.FormatInt(id, 10)) }

package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tidemark"
	"tidemark/control"
	"tidemark/policy"
)

// metrics is what Prometheus is told. Labels are operations, kinds, states, statuses and the names of applications and webhooks: no more than there are.
type metrics struct {
	handler  http.Handler
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
}

func newMetrics(c *control.Control) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_http_requests_total", Help: "Requests that were answered, by operation and status."}, []string{"operation", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tidemark_http_request_duration_seconds", Help: "How long answers took, by operation. Streams are not among them.",
			Buckets: []float64{0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30}}, []string{"operation"}),
	}
	r := prometheus.NewRegistry()
	r.MustRegister(m.requests, m.took, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &state{c: c})
	m.handler = promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return m
}

// answered counts an answer.
func (m *metrics) answered(o operation, status int, begun time.Time) {
	if status == 0 { // nothing was said, which the library makes a 200
		status = http.StatusOK
	}
	m.requests.WithLabelValues(o.id, strconv.Itoa(status)).Inc()
	if !o.stream {
		m.took.WithLabelValues(o.id).Observe(time.Since(begun).Seconds())
	}
}

// scrapeTime is how long the state of the server may take.
const scrapeTime = 10 * time.Second

// state tells how the server is when it is asked.
type state struct{ c *control.Control }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tidemark_"+name, help, labels, nil)
}

var (
	buildInfo      = describe("build_info", "1, and the version.", "version")
	warnings       = describe("warnings", "What an operator should look at now: tidemark status says it.")
	applications   = describe("applications", "Applications and volumes.")
	clones         = describe("clones", "Clones.")
	mounts         = describe("mounts", "Mounts.")
	exports        = describe("exports", "Exports.")
	newestPoint    = describe("application_newest_point_timestamp_seconds", "The time of the newest point of an application: time() minus it is its age. 0 if it has none.", "application")
	coveredUntil   = describe("application_covered_until_timestamp_seconds", "Until when any point of an application can be had, where its log or its writes come by themselves.", "application")
	tapFollowing   = describe("tap_following", "1 if every write of the application arrives.", "application")
	tapLag         = describe("tap_lag_seconds", "The age of the oldest write that has not arrived.", "application")
	tapLost        = describe("tap_lost_bytes", "What has to be read from the disks again.", "application")
	tapQueued      = describe("tap_queued_bytes", "What is on its way.", "application")
	capturedRead   = describe("captured_read_bytes_total", "What captures and imports read of sources.", "application")
	capturedDiffer = describe("captured_changed_bytes_total", "What captures and imports found changed.", "application")
	capturedStored = describe("captured_stored_bytes_total", "What captures and imports added to the pool.", "application")
	logBytes       = describe("log_bytes_total", "What came of the log of a database of another host.", "application")
	logCarried     = describe("log_carried_bytes_total", "As how much that was carried over the network.", "application")
	poolPhysical   = describe("pool_physical_bytes", "What the pool takes.")
	poolLogical    = describe("pool_logical_bytes", "What all points of all disks would take as full copies, without holes.")
	poolFree       = describe("pool_free_bytes", "What is free where the data directory lies.")
	poolHealthy    = describe("pool_healthy", "1 if the pool's health is ok.")
	journalBytes   = describe("journal_bytes", "What the journals take.")
	journalArchive = describe("journal_archived_bytes", "What of the journals was moved into the pool.")
	k              = describe("k", "The most layers and segments touched to materialise any point now.")
	kLimit         = describe("k_limit", "The bound of k.")
	hookPending    = describe("webhook_pending_events", "Events that wait to be posted to the webhook.", "webhook")
	hookOldest     = describe("webhook_oldest_pending_timestamp_seconds", "When the oldest of these happened.", "webhook")
	hookFailing    = describe("webhook_failing_since_timestamp_seconds", "Since when nothing was taken by the webhook that was posted to it; not there while all is well.", "webhook")
	hookTaken      = describe("webhook_delivered_total", "Messages that the webhook took.", "webhook")
	hookFailed     = describe("webhook_failed_attempts_total", "Messages that the webhook did not take, each as often as it was posted.", "webhook")
	jobsNow        = describe("jobs", "Jobs that have not ended, by kind and state.", "kind", "state")
	auditWaiting   = describe("audit_waiting_records", "Records of the audit that the catalog could not take yet.")
	auditLost      = describe("audit_lost_records_total", "Records of the audit that are lost: the catalog could not take them, and there was no room to keep them.")
	auditIntact    = describe("audit_intact", "0 if the audit is not what its checkpoints say.")
	auditThrough   = describe("audit_checkpoint_record", "The record up to which checkpoints of the audit reach.")
	auditAt        = describe("audit_checkpoint_timestamp_seconds", "When the newest checkpoint of the audit was made.")
	slaState       = describe("sla_state", "1 for the state in which what is promised to an application is, 0 for the others.", "application", "state")
	slaRPO         = describe("sla_rpo_seconds", "How old the newest recoverable moment of an application is to which something is promised.", "application")
	slaRPOPromised = describe("sla_rpo_promised_seconds", "How old it may be, where that is promised.", "application")
	slaRTO         = describe("sla_rto_seconds", "How long its newest recovery took that was measured.", "application")
	slaRTOPromised = describe("sla_rto_promised_seconds", "How long it may take, where that is promised.", "application")
	hostConnected  = describe("host_connected", "1 if the agent of a host that has joined is connected.", "host")
	jobsTook       = describe("job_duration_seconds", "How long jobs took that have ended, by kind and how they ended.", "kind", "state")
)

// Describe implements [prometheus.Collector]. What is told depends on what there is.
func (s *state) Describe(ch chan<- *prometheus.Desc) { ch <- buildInfo }

// Collect implements [prometheus.Collector].
func (s *state) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(buildInfo, 1, tidemark.Version)
	if err := s.server(ctx, gauge); err != nil {
		ch <- prometheus.NewInvalidMetric(poolHealthy, err)
	}
	if err := s.jobs(ctx, ch, gauge); err != nil {
		ch <- prometheus.NewInvalidMetric(jobsNow, err)
	}
	s.audit(ch, gauge)
	for _, x := range s.c.Standings() {
		tellStanding(x, gauge)
	}
	if err := s.hosts(ctx, gauge); err != nil {
		ch <- prometheus.NewInvalidMetric(hostConnected, err)
	}
	if err := s.webhooks(ctx, ch, gauge); err != nil {
		ch <- prometheus.NewInvalidMetric(hookPending, err)
	}
	for app, n := range s.c.Captured() {
		for d, v := range map[*prometheus.Desc]int64{capturedRead: n.Read, capturedDiffer: n.Changed, capturedStored: n.Stored} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), app)
		}
		if n.LogCarried > 0 {
			ch <- prometheus.MustNewConstMetric(logBytes, prometheus.CounterValue, float64(n.Log), app)
			ch <- prometheus.MustNewConstMetric(logCarried, prometheus.CounterValue, float64(n.LogCarried), app)
		}
	}
}

type gauge = func(d *prometheus.Desc, v float64, labels ...string)

// server tells what the status says.
func (s *state) server(ctx context.Context, tell gauge) error {
	st, err := s.c.Status(ctx)
	if err != nil {
		return err
	}
	served, err := s.c.Exports(ctx)
	if err != nil {
		return err
	}
	tell(warnings, float64(len(st.Warnings)))
	tell(applications, float64(len(st.Applications)))
	tell(clones, float64(len(st.Clones)))
	tell(mounts, float64(len(st.Mounts)))
	tell(exports, float64(len(served)))
	tell(poolPhysical, float64(st.Pool.PhysicalBytes))
	tell(poolLogical, float64(st.Pool.LogicalBytes))
	tell(poolFree, float64(st.Pool.FreeBytes))
	tell(poolHealthy, is(st.Pool.Health == "ok"))
	tell(journalBytes, float64(st.Pool.JournalBytes))
	tell(journalArchive, float64(st.Pool.ArchivedBytes))
	tell(k, float64(*st.K))
	tell(kLimit, float64(st.KLimit))
	for _, a := range st.Applications {
		tellApplication(a, tell)
	}
	return nil
}

func tellApplication(a tidemark.Application, tell gauge) {
	newest := 0.0 // it is there for who has no point, too, so that an alarm for its age sounds
	if a.Latest != nil {
		newest = seconds(a.Latest.Time)
	}
	tell(newestPoint, newest, a.Name)
	if a.Covered != nil && !a.Covered.To.IsZero() {
		tell(coveredUntil, seconds(a.Covered.To), a.Name)
	}
	if a.Tap != nil {
		tell(tapFollowing, is(a.Tap.State == tidemark.TapFollowing), a.Name)
		tell(tapLag, a.Tap.Lag, a.Name)
		tell(tapLost, float64(a.Tap.LostBytes), a.Name)
		tell(tapQueued, float64(a.Tap.QueuedBytes), a.Name)
	}
}

// tellStanding tells how what is promised to an application is kept, as that was found by who looks what is due.
func tellStanding(x policy.Compliance, tell gauge) {
	for _, state := range policy.States() {
		tell(slaState, is(x.State == state), x.Application, string(state))
	}
	objective := func(measured, promised *prometheus.Desc, o policy.Objective) {
		if o.Measured != nil {
			tell(measured, time.Duration(*o.Measured).Seconds(), x.Application)
		}
		if o.Promised != 0 {
			tell(promised, time.Duration(o.Promised).Seconds(), x.Application)
		}
	}
	objective(slaRPO, slaRPOPromised, x.RPO)
	objective(slaRTO, slaRTOPromised, x.RTO)
}

// hosts tells which are connected.
func (s *state) hosts(ctx context.Context, tell gauge) error {
	hosts, err := s.c.Connected(ctx)
	for name, connected := range hosts {
		tell(hostConnected, is(connected), name)
	}
	return err
}

// audit tells how the audit is kept, also while the catalog is away.
func (s *state) audit(ch chan<- prometheus.Metric, tell gauge) {
	t := s.c.Trail()
	tell(auditWaiting, float64(t.Waiting))
	ch <- prometheus.MustNewConstMetric(auditLost, prometheus.CounterValue, float64(t.Lost))
	tell(auditIntact, is(t.Trouble == nil))
	if !t.At.IsZero() {
		tell(auditThrough, float64(t.Through))
		tell(auditAt, seconds(t.At))
	}
}

// jobs tells how many there are, and how long they took.
func (s *state) jobs(ctx context.Context, ch chan<- prometheus.Metric, tell gauge) error {
	counts, err := s.c.CountJobs(ctx)
	if err != nil {
		return err
	}
	for _, n := range counts {
		switch n.State {
		case tidemark.JobDone, tidemark.JobFailed, tidemark.JobCancelled:
			ch <- prometheus.MustNewConstSummary(jobsTook, uint64(n.Jobs), n.Took.Seconds(), nil, n.Kind, string(n.State))
		default:
			tell(jobsNow, float64(n.Jobs), n.Kind, string(n.State))
		}
	}
	return nil
}

// webhooks tells how far events have been posted.
func (s *state) webhooks(ctx context.Context, ch chan<- prometheus.Metric, tell gauge) error {
	list, err := s.c.Webhooks(ctx)
	for _, w := range list {
		tell(hookPending, float64(w.Pending), w.Name)
		if w.Oldest != nil {
			tell(hookOldest, seconds(*w.Oldest), w.Name)
		}
		if w.FailingSince != nil {
			tell(hookFailing, seconds(*w.FailingSince), w.Name)
		}
		ch <- prometheus.MustNewConstMetric(hookTaken, prometheus.CounterValue, float64(w.Delivered), w.Name)
		ch <- prometheus.MustNewConstMetric(hookFailed, prometheus.CounterValue, float64(w.Failed), w.Name)
	}
	return err
}

func is(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func (s *server) sendMetrics(w http.ResponseWriter, r *http.Request) {
	leave := s.c.Enter()
	defer leave()
	s.metrics.handler.ServeHTTP(w, r)
}

// sendHealth answers as long as the process lives.
func (s *server) sendHealth(w http.ResponseWriter, _ *http.Request) { s.sendText(w, "ok\n") }

// sendReady answers whether requests can be.
func (s *server) sendReady(w http.ResponseWriter, r *http.Request) {
	if err := s.c.Ready(r.Context()); err != nil {
		e := tidemark.Errorf(tidemark.Unavailable, "the server is not ready: %w", err)
		s.fail(w, e)
		return
	}
	s.sendText(w, "ready\n")
}

func (s *server) sendText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := w.Write([]byte(text)); err != nil {
		s.log.Debug("a client went away", "error", err)
	}
}

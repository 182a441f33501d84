package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/client"
)

func statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Applications, mounts, clones, jobs and the pool", Args: takes(0), Example: "  tidemark status\n  tidemark status --json | jq .pool.health", RunE: func(cmd *cobra.Command, _ []string) error {
		return tell(printStatus)(server().Status(cmd.Context()))
	}}
}

func printStatus(s tidemark.Status) {
	for _, w := range s.Warnings {
		fmt.Println("WARNING:", w)
	}
	var rows [][]string
	for _, a := range s.Applications {
		latest, covered := "-", "-"
		if a.Latest != nil {
			latest = when(a.Latest.Time)
		}
		if a.Covered != nil {
			covered = when(a.Covered.To)
		}
		rows = append(rows, []string{a.Name, string(a.Type), latest, covered, a.State, a.Detail})
	}
	table("APPLICATION TYPE LATEST ANY-TIME-UNTIL STATE DETAIL", rows)
	printTaps(s.Applications)
	fmt.Printf("\n%d clones, %d mounts\n", len(s.Clones), len(s.Mounts))
	for _, m := range s.Mounts {
		printElsewhere("mount", m.Name, m.Host, m.State)
	}
	for _, k := range s.Clones {
		printElsewhere("clone", k.Name, k.Host, k.State)
	}
	if s.Pool != nil {
		printPool(*s.Pool)
	}
	if s.K != nil {
		fmt.Printf("K %d (limit %d)\n", *s.K, s.KLimit)
	}
	for _, j := range s.Jobs {
		if j.State == tidemark.JobRunning {
			fmt.Printf("job %d: %s %s: %s\n", j.ID, j.Kind, j.Application, j.Step)
		}
	}
	for _, e := range s.Events {
		if e.Level != "info" {
			fmt.Printf("%s %s %s %s\n", when(e.Time), e.Level, dash(e.Application), e.Message)
		}
	}
}

func printPool(p tidemark.PoolStatus) {
	journals := size(p.JournalBytes)
	if p.ArchivedBytes > 0 {
		journals += fmt.Sprintf(" (%s archived)", size(p.ArchivedBytes))
	}
	fmt.Printf("pool %s: %s in %d packs, journals %s, free %s, health %s\n", p.Path, size(p.PhysicalBytes), p.Packs, journals, size(p.FreeBytes), p.Health)
	if p.LogicalBytes > 0 && p.PhysicalBytes > 0 {
		fmt.Printf("full copies of all points would take %s\n", size(p.LogicalBytes))
	}
}

// printElsewhere says how a clone or mount on another host is.
func printElsewhere(what, name, host, state string) {
	if host != "" {
		fmt.Printf("%s %s on host %s: %s\n", what, name, host, state)
	}
}

// printTaps says how the taps are.
func printTaps(list []tidemark.Application) {
	var rows [][]string
	for _, a := range list {
		if a.Tap == nil {
			continue
		}
		for _, d := range a.Tap.Disks {
			if h := a.Tap.Host; h != "" {
				d.Primary = h + ":" + d.Primary
			}
			rows = append(rows, []string{a.Name, d.Primary, string(a.Tap.State), size(a.Tap.LostBytes), size(a.Tap.QueuedBytes), seconds(a.Tap.Lag), dash(d.Device)})
		}
	}
	if len(rows) > 0 {
		fmt.Println()
		table("TAP PRIMARY STATE TO-SEND QUEUED LAG DEVICE", rows)
	}
}

func expireCommand() *cobra.Command {
	return &cobra.Command{Use: "expire APP@POINT", Short: "Forget a point; `reclaim` gives its bytes back", Args: takes(0, aRef), ValidArgsFunction: anyName,
		Example: "  tidemark expire orders@nightly",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := tidemark.ParseRef(args[0])
			if err != nil {
				return usage(err)
			}
			return tell(func(p tidemark.RecoveryPoint) {
				fmt.Printf("%s (%v, of %s) is forgotten\n", dash(p.Bookmark), p.Position, when(p.Time))
			})(server().Expire(cmd.Context(), ref))
		}}
}

func forgetCommand() *cobra.Command {
	return &cobra.Command{Use: "forget ID", Short: "Delete what is left of a timeline that cannot be opened", Args: takes(0, aName),
		Long:    "Delete what is left of a timeline that is too damaged to be opened.\n`tidemark verify` names such timelines by their IDs. Until they are brought back\nor forgotten, nothing is reclaimed, for it is not known what they need.",
		Example: "  tidemark forget 3d0df8648c83e76bc8c7021c9f163021",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().Forget(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"id": args[0]}, func() { fmt.Println(args[0], "is forgotten") })
		}}
}

func reclaimCommand() *cobra.Command {
	return &cobra.Command{Use: "reclaim", Short: "Give back the bytes that no point needs", Args: takes(0), Example: "  tidemark reclaim", RunE: func(cmd *cobra.Command, _ []string) error {
		return work(cmd, func(r tidemark.ReclaimResult) {
			fmt.Printf("freed %s in %d packs, %s are in use, in %s\n", size(r.FreedBytes), r.PacksDeleted, size(r.LiveBytes), seconds(r.Seconds))
		})(server().Reclaim(cmd.Context()))
	}}
}

func verifyCommand() *cobra.Command {
	return &cobra.Command{Use: "verify [APP[@POINT]]", Short: "Read and hash all that is stored, or all of one APP or point", Args: takes(1, aRef), ValidArgsFunction: anyName,
		Example: "  tidemark verify\n  tidemark verify orders\n  tidemark verify orders@nightly",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := tidemark.VerifySpec{}
			if len(args) == 1 {
				spec.Ref = args[0]
			}
			j, err := server().Verify(cmd.Context(), spec)
			v, err := result[tidemark.VerifyResult](cmd, j, err)
			if err != nil {
				return err
			}
			if err := show(v, func() { printVerify(v) }); err != nil {
				return err
			}
			if n := len(v.Damaged); n > 0 {
				return tidemark.Errorf(tidemark.Corrupt, "damage in %d places", n).WithHint("what a source still has is stored again by its next capture")
			}
			return nil
		}}
}

func printVerify(v tidemark.VerifyResult) {
	for _, d := range v.Damaged {
		fmt.Println("damaged:", d)
	}
	fmt.Printf("%d chunks, %s, read and hashed in %s\n", v.Chunks, size(v.Bytes), seconds(v.Seconds))
}

// usualJobs is how many jobs are listed if nobody says how many.
const usualJobs = 50

func jobsCommand() *cobra.Command {
	var all bool
	var states []string
	var f tidemark.JobFilter
	var most int
	c := &cobra.Command{Use: "jobs", Short: "List jobs, newest first", Args: takes(0), Example: "  tidemark jobs\n  tidemark jobs --state queued,running",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if most < 1 {
				return usage(tidemark.Errorf(tidemark.Invalid, "%d jobs cannot be listed", most).WithHint("give 1 or more, or --all"))
			}
			for _, s := range states {
				f.States = append(f.States, tidemark.JobState(s))
			}
			jobs := server().Jobs(cmd.Context(), f)
			if !all {
				jobs = client.First(most, jobs)
			}
			return printList(jobs, printJobs)
		}}
	c.Flags().BoolVar(&all, "all", false, "list all of them, not only the newest 50")
	c.Flags().StringSliceVar(&states, "state", nil, "only those that are queued, running, done, failed or cancelled")
	c.Flags().StringVar(&f.Kind, "kind", "", "only those of a kind, such as capture")
	c.Flags().StringVar(&f.Application, "app", "", "only those of an application")
	c.Flags().IntVar(&most, "limit", usualJobs, "how many")
	return c
}

func printJobs(list []tidemark.Job) {
	var rows [][]string
	for _, j := range list {
		detail := j.Step
		switch {
		case j.Waits != "":
			detail = "waits " + j.Waits
		case j.Error != nil:
			detail = j.Error.Message
		}
		rows = append(rows, []string{strconv.FormatInt(j.ID, 10), j.Kind, dash(j.Application), string(j.State), when(j.Created), detail})
	}
	table("ID KIND APPLICATION STATE CREATED DETAIL", rows)
}

func jobCommand() *cobra.Command {
	return group(&cobra.Command{Use: "job", Short: "One job: show, wait, cancel"},
		onJob("show ID", "Describe a job", func(cmd *cobra.Command, id int64) error {
			j, err := server().Job(cmd.Context(), id)
			if err != nil {
				return err
			}
			return show(j, func() { printJob(j) })
		}),
		onJob("wait ID", "Wait for a job to end", awaitJob),
		onJob("cancel ID", "Take a job from the queue, or cut it and undo what it did", func(cmd *cobra.Command, id int64) error {
			return server().Cancel(cmd.Context(), id)
		}))
}

// awaitJob shows the progress of a job until it ends. That it failed is an error.
func awaitJob(cmd *cobra.Command, id int64) error {
	bar := newProgress("job " + strconv.FormatInt(id, 10))
	defer bar.finish()
	return server().Wait(cmd.Context(), id, nil, bar.report)
}

func onJob(use, short string, run func(*cobra.Command, int64) error) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{Use: use, Short: short, Args: takes(0, aAny), Example: "  tidemark job " + verb + " 12", RunE: func(cmd *cobra.Command, args []string) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return usage(tidemark.Errorf(tidemark.Invalid, "%q is not the number of a job", args[0]).WithHint("`tidemark jobs` lists them"))
		}
		return run(cmd, id)
	}}
}

func printJob(j tidemark.Job) {
	fmt.Printf("job %d: %s %s: %s %s\n", j.ID, j.Kind, dash(j.Application), j.State, j.Step)
	if j.Progress.Total > 0 {
		fmt.Printf("%d of %d %s\n", j.Progress.Done, j.Progress.Total, j.Progress.Unit)
	}
	if j.Waits != "" {
		fmt.Println("waits", j.Waits)
	}
	if j.Attempt > 1 || j.State == tidemark.JobQueued && j.Attempt > 0 {
		fmt.Printf("attempt %d of %d\n", j.Attempt, j.MaxAttempts)
	}
	if j.Error != nil {
		fmt.Println(j.Error)
	}
}

func poolCommand() *cobra.Command {
	return group(&cobra.Command{Use: "pool", Short: "The pool that images rest in"}, poolImport())
}

func poolImport() *cobra.Command {
	return &cobra.Command{Use: "import DIR", Short: "Bring all images of another data directory into an empty server", Args: takes(0, aAny),
		Example: "  tidemark pool import /mnt/old/tidemark",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return work(cmd, func(r tidemark.ImportResult) {
				fmt.Printf("%d applications with %d points, %s\n", r.Applications, r.Points, size(r.Bytes))
			})(server().ImportPool(cmd.Context(), tidemark.PoolImport{Path: dir}))
		}}
}

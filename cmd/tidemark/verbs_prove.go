package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
)

func proveCommand() *cobra.Command {
	var spec tidemark.ProveSpec
	var timeout, probeTimeout, random string
	c := &cobra.Command{Use: "prove APP[@POINT]", Short: "Bring a point up in a sandbox, check it, and stamp it as proven", Args: takes(0, aRef), ValidArgsFunction: anyName,
		Long: `Bring a point up in a sandbox, check it, and stamp it with what was found and
with the time that recovery took: from the request to the application's first
answer. The sandbox has no network and sees nothing of production; it is thrown
away afterwards.

Databases are recovered, connected to, and read by pg_amcheck, pg_dump and
pg_checksums; file systems are checked by their checkers and walked; blocks of
volumes are compared with their hashes. --deep reads everything.

--probe runs a program, or FILE.sql, of the directory probes of the data
directory, which only root may be able to write to. A program finds in its
environment:
  TIDEMARK_APPLICATION, TIDEMARK_POINT, TIDEMARK_TIME
  TIDEMARK_CONNECTION  of a database, as PGHOST, PGPORT, PGUSER, PGDATABASE are
  TIDEMARK_MOUNT       where files are
  TIDEMARK_DEVICE      the first disk of a volume
Its exit code decides. Of SQL every statement must succeed; if the last one
returns a boolean, that must be true.`,
		Example: "  tidemark prove orders\n  tidemark prove orders@nightly --deep --probe totals.sql --database shop\n  tidemark prove orders --random 30d",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Ref = args[0]
			for _, d := range []struct {
				name, text string
				to         *int64
			}{{"timeout", timeout, &spec.Timeout}, {"probe-timeout", probeTimeout, &spec.ProbeTimeout}, {"random", random, &spec.Random}} {
				if *d.to, err = parseSeconds(d.name, d.text); err != nil {
					return usage(err)
				}
			}
			if cmd.Flags().Changed("seed") && random == "" {
				return usage(fmt.Errorf("--seed goes with --random"))
			}
			return work(cmd, printProof)(server().Prove(cmd.Context(), spec))
		}}
	f := c.Flags()
	f.StringVar(&spec.Probe, "probe", "", "a program or SQL file of the directory probes")
	f.StringVar(&spec.Database, "database", "", "that the probe connects to (default postgres)")
	f.BoolVar(&spec.Deep, "deep", false, "read every row of every index, every file, every block")
	f.StringVar(&timeout, "timeout", "", "how long all of it may take (default 30m)")
	f.StringVar(&probeTimeout, "probe-timeout", "", "how long the probe may take (default 5m)")
	f.StringVar(&random, "random", "", "prove a point of so long, such as 30d, chosen at random")
	f.Int64Var(&spec.Seed, "seed", 0, "choose as the proof with that seed chose")
	return c
}

// parseSeconds reads a time of a second or more, such as 90s, 2h or 30d; an empty one is 0.
func parseSeconds(flag, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int64
		n, err = strconv.ParseInt(days, 10, 32)
		d = time.Duration(min(n, mostDays)) * 24 * time.Hour
	}
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("--%s %q is no time of a second or more: write 90s, 30m, 2h or 30d", flag, text)
	}
	return int64(d / time.Second), nil
}

// mostDays is as far as a time can be read in days.
const mostDays = 100 * 365

func printProof(p tidemark.Proof) {
	fmt.Printf("%s of %s is proven: it answered %s after it was asked for, and all was checked in %s\n", p.Ref, when(p.Time), seconds(p.RecoverySeconds), seconds(p.Seconds))
	var rows [][]string
	for _, s := range p.Steps {
		rows = append(rows, []string{s.Name, seconds(s.Seconds)})
	}
	table("STEP TIME", rows)
	rows = nil
	for _, c := range p.Checks {
		rows = append(rows, []string{c.Name, string(c.Result), seconds(c.Seconds), c.Detail})
	}
	table("CHECK RESULT TIME DETAIL", rows)
	if p.Seed != 0 {
		fmt.Printf("chosen at random, with the seed %d\n", p.Seed)
	}
}

// proven is what the list of points says of a proof: the recovery time.
func proven(s *tidemark.Stamp) string {
	switch {
	case s == nil:
		return "-"
	case s.Result != tidemark.Proven:
		return "FAILED"
	}
	return seconds(s.RecoverySeconds)
}

// printMoments lists proofs of other points than those that are kept.
func printMoments(list []tidemark.Proof) {
	for _, p := range list {
		if p.Result == tidemark.Proven {
			fmt.Printf("proven: %s, in %s\n", p.Ref, seconds(p.RecoverySeconds))
		} else {
			fmt.Printf("FAILED: %s: %s\n", p.Ref, p.Reason)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
)

func bisectCommand() *cobra.Command {
	var spec bisectSpec
	var life string
	c := &cobra.Command{Use: "bisect APP --good A --bad B -- CMD [ARGS...]", Short: "Find the write that made it bad, by trying points in turn", Args: takesCommand, ValidArgsFunction: anyName,
		Long: `Find the first bad point of APP between a good point A and a bad one B. Points
are mounted in turn, halving what is left, and CMD says of each whether it is
good, until one write, or --resolution, is left between the last good point and
the first bad one. What differs between the two is printed.

CMD runs here, with this in its environment:
  TIDEMARK_POINT       APP@#POSITION
  TIDEMARK_TIME        the time of the point
  TIDEMARK_MOUNT       where the file system is mounted; it may be written
  TIDEMARK_DEVICE      the disk
  TIDEMARK_CONNECTION  with --clone: how the clone is reached

and ends with 0 if the point is good, 125 if that cannot be told, another code
up to 127 if it is bad; a higher one ends the search. A point whose file system
cannot be mounted, or whose clone does not come up, is bad. What is mounted for
a point lives for the time of --for: if CMD takes longer, the search ends.`,
		Example: "  tidemark bisect dev --good -1h --bad -1m -- sh -c 'test -e $TIDEMARK_MOUNT/a'\n  tidemark bisect shop --good nightly --bad -5m --clone -- ./check\n  tidemark bisect vm --good '#12' --bad '#90000' --no-mount -- ./check",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.app, spec.command = args[0], args[1:]
			if spec.life, err = parseSeconds("for", life); err != nil {
				return usage(err)
			}
			if err := spec.check(); err != nil {
				return usage(err)
			}
			res, err := bisect(cmd.Context(), spec)
			if err != nil {
				return err
			}
			return show(res, func() { printBisected(res) })
		}}
	c.Flags().StringVar(&spec.good, "good", "", "a point at which it is good")
	c.Flags().StringVar(&spec.bad, "bad", "", "a later point at which it is bad")
	c.Flags().DurationVar(&spec.resolution, "resolution", 0, "end when the two are no further apart, such as 1s (default: at one write)")
	c.Flags().BoolVar(&spec.clone, "clone", false, "bring up a clone of each point")
	c.Flags().BoolVar(&spec.noMount, "no-mount", false, "attach each point as a disk, and mount nothing")
	c.Flags().StringVar(&life, "for", "", "how long CMD may take for a point, such as 10m (default any time, or as long as\na copy may live by your grants)")
	diskFlag(c, &spec.disk)
	_ = c.MarkFlagRequired("good")
	_ = c.MarkFlagRequired("bad")
	return c
}

// takesCommand makes sure of APP -- CMD.
func takesCommand(cmd *cobra.Command, args []string) error {
	if len(args) < 2 || cmd.ArgsLenAtDash() != 1 {
		return usage(fmt.Errorf("usage: %s", cmd.UseLine()))
	}
	return usage(tidemark.CheckName(args[0]))
}

// check refuses what can never work.
func (s *bisectSpec) check() error {
	for _, p := range []string{s.good, s.bad} {
		if _, err := tidemark.ParsePoint(p); err != nil {
			return err
		}
	}
	if s.resolution < 0 {
		return errors.New("--resolution is negative: write a time such as 1s")
	}
	if s.clone && (s.noMount || s.disk != "") {
		return errors.New("a clone has all disks, and mounts them: leave --disk and --no-mount out, or --clone")
	}
	if _, err := exec.LookPath(s.command[0]); err != nil {
		return fmt.Errorf("the command cannot be run: %w", err)
	}
	return nil
}

func printBisected(r tidemark.Bisected) {
	const form = "2006-01-02 15:04:05.000000"
	table("POINT POSITION TIME BOOKMARK", [][]string{
		{"last-good", r.Good.Position.String(), r.Good.Time.Local().Format(form), dash(r.Good.Bookmark)},
		{"first-bad", r.Bad.Position.String(), r.Bad.Time.Local().Format(form), dash(r.Bad.Bookmark)},
	})
	switch {
	case r.Write != nil:
		fmt.Printf("the write that made it bad: %d bytes at offset %d of disk %s\n", r.Write.Len, r.Write.Off, r.Write.Disk)
	case len(r.Skipped) > 0:
		fmt.Printf("it is the first bad one, or one of %d before it that cannot be told\n", len(r.Skipped))
	case r.Left > 0:
		fmt.Printf("%d steps lie between them, and they are %v apart\n", r.Left, r.Bad.Time.Sub(r.Good.Time).Round(time.Millisecond))
	default:
		fmt.Println("no point between them can be had")
	}
	if len(r.Extents) > 0 {
		var rows [][]string
		for _, e := range r.Extents {
			rows = append(rows, []string{e.Disk, strconv.FormatInt(e.Off, 10), strconv.FormatInt(e.Len, 10)})
		}
		fmt.Println()
		table("CHANGED-DISK OFFSET LENGTH", rows)
	}
	for _, n := range r.Notes {
		fmt.Println("note:", n)
	}
	fmt.Printf("%s in %d extents differ; %d points were looked at in %s\n", size(r.ChangedBytes), len(r.Extents), r.Probes, seconds(r.Seconds))
}

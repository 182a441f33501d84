package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
)

func liveCloneCommand() *cobra.Command {
	c := &cobra.Command{Use: "liveclone", Short: "Prepare a clone, and publish it without what is sensitive",
		Long: `A LiveClone is a clone that is kept for others: it is refreshed from its source,
prepared (masked, for example), and published. Before a point is published, all
that a clone of it could read is searched for the sensitive values: rows that
were deleted, free space, WAL, the journal of the file system.`}
	return group(c, liveMake(), livePrepare(), livePublish(), liveUnpublish(), liveShow(), liveList("ls"))
}

func liveMake() *cobra.Command {
	var p tidemark.Preparation
	spec := tidemark.CloneSpec{Preparation: &p}
	var limit string
	c := &cobra.Command{Use: "make APP[@POINT] NAME", Short: "Make a clone that is prepared for others", Args: takes(0, aRef, aName), ValidArgsFunction: anyName,
		Long: `Make a clone that is prepared for others. Nothing is prepared yet.

Its steps are files of the directory preparations of the data directory (of the
agent's, if it is on another host), which only root may be able to write to: SQL
if the name ends in .sql, else programs. They run in the order given. A program
finds in its environment:
  TIDEMARK_CLONE, TIDEMARK_SOURCE
  TIDEMARK_CONNECTION  of a database, as PGHOST, PGPORT, PGUSER, PGDATABASE are
  TIDEMARK_MOUNT       where files are

The sensitive values are a file of the directory secrets of the data directory:
one a line, or, if its name ends in .sql, a query that returns them of the
source when something is published. They are never kept.`,
		Example: "  tidemark liveclone make orders masked --step mask.sql --secrets cards.sql",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Ref, spec.Name = args[0], args[1]
			if p.StepTimeout, err = parseSeconds("step-timeout", limit); err != nil {
				return usage(err)
			}
			return work(cmd, printClone)(server().Clone(cmd.Context(), spec))
		}}
	f := c.Flags()
	f.StringArrayVar(&p.Steps, "step", nil, "a file of the directory preparations; can be given again")
	f.StringVar(&p.Database, "database", "", "that SQL runs in (default postgres)")
	f.StringVar(&p.Secrets, "secrets", "", "a file of the directory secrets: without it nothing can be published")
	f.StringVar(&limit, "step-timeout", "", "how long each step may take (default 1h)")
	f.BoolVar(&p.NoRewrite, "no-rewrite", false, "do not take residue off a PostgreSQL or file tree when it was masked")
	f.IntVar(&spec.Port, "port", 0, "the database's port (default: a free one)")
	hostFlag(c, &spec.Host, "the host to bring it up on (default: the server's own)")
	return c
}

func livePrepare() *cobra.Command {
	spec := tidemark.PrepareSpec{}
	c := &cobra.Command{Use: "prepare NAME", Short: "Run the steps of a LiveClone, and bookmark the result", Args: takes(0, aName), ValidArgsFunction: cloneNames,
		Long: `Refresh a LiveClone, if that is asked for, run its steps, take off a PostgreSQL
or file tree what they have left of what they masked, and bookmark the result.
If that fails, or is cut, the LiveClone is what it was before. Its points stay,
and those that are published can be cloned meanwhile.`,
		Example: "  tidemark liveclone prepare masked --refresh\n  tidemark liveclone prepare masked --refresh --point nightly --bookmark monday",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name = args[0]
			if spec.Point != "" && !spec.Refresh {
				return usage(fmt.Errorf("--point goes with --refresh"))
			}
			if err := checkBookmark(spec.Bookmark); err != nil {
				return err
			}
			return work(cmd, printPrepared)(server().Prepare(cmd.Context(), spec))
		}}
	f := c.Flags()
	f.BoolVar(&spec.Refresh, "refresh", false, "take the data of its source first")
	f.StringVar(&spec.Point, "point", "", "the point of its source (default: the latest)")
	f.StringVar(&spec.Bookmark, "bookmark", "", "a name for the result (default: made of the time)")
	return c
}

func printPrepared(p tidemark.Prepared) {
	fmt.Printf("%s@%s is prepared, of %s, in %s\n", p.Name, p.Point.Bookmark, p.Source, seconds(p.Seconds))
	var rows [][]string
	for _, s := range p.Steps {
		rows = append(rows, []string{seconds(s.Seconds), s.Name})
	}
	table("TIME STEP", rows)
	if p.Output != "" {
		fmt.Println("what the steps said:", p.Output)
	}
}

func livePublish() *cobra.Command {
	return &cobra.Command{Use: "publish NAME[@BOOKMARK]", Short: "Check a prepared point for residue, and publish it", Args: takes(0, aRef), ValidArgsFunction: cloneNames,
		Long: `Search a point that a preparation ended in (the newest, if none is named) for
the sensitive values, and publish it if there are none. If there are, it is said
where they are and nothing is published; the job lists the places. What is
published is kept until it is unpublished.`,
		Example: "  tidemark liveclone publish masked\n  tidemark liveclone publish masked@monday",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, bookmark, err := bookmarkOf(args[0], true)
			if err != nil {
				return err
			}
			return work(cmd, func(p tidemark.Published) {
				fmt.Printf("%s@%s is published: %d values were searched in %s, and not found, in %s\n", p.Name, p.Bookmark, p.Fingerprints, size(p.ReadBytes), seconds(p.Seconds))
			})(server().Publish(cmd.Context(), tidemark.PublishSpec{Name: name, Bookmark: bookmark}))
		}}
}

// bookmarkOf reads NAME@BOOKMARK, of which the bookmark may be missing if that is said.
func bookmarkOf(text string, optional bool) (name, bookmark string, err error) {
	r, err := tidemark.ParseRef(text)
	if err == nil && r.Point.Bookmark == "" && !(optional && r.Point.Latest()) {
		err = tidemark.Errorf(tidemark.Invalid, "%q names no bookmark", text).WithHint("write NAME@BOOKMARK: `tidemark points " + r.App + "` lists them")
	}
	return r.App, r.Point.Bookmark, usage(err)
}

func liveUnpublish() *cobra.Command {
	return &cobra.Command{Use: "unpublish NAME@BOOKMARK", Short: "End that a point may be cloned by others", Args: takes(0, aRef), ValidArgsFunction: cloneNames,
		Example: "  tidemark liveclone unpublish masked@monday",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, bookmark, err := bookmarkOf(args[0], false)
			if err == nil {
				err = server().Unpublish(cmd.Context(), name, bookmark)
			}
			if err != nil {
				return err
			}
			return show(map[string]string{"name": name, "bookmark": bookmark}, func() { fmt.Println(args[0], "is no longer published") })
		}}
}

func liveShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show how a LiveClone is prepared, and what of it is published", Args: takes(0, aName), ValidArgsFunction: cloneNames,
		Example: "  tidemark liveclone show masked",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(printLiveClone)(server().LiveClone(cmd.Context(), args[0]))
		}}
}

func printLiveClone(l tidemark.LiveClone) {
	fmt.Printf("%s  of %s  %s\n", l.Name, strings.Join(l.Sources, " "), l.State)
	fmt.Printf("steps: %s; secrets: %s\n", dash(strings.Join(l.Preparation.Steps, " ")), dash(l.Preparation.Secrets))
	if l.Prepared != nil {
		fmt.Printf("prepared: %s@%s of %s\n", l.Name, l.Prepared.Bookmark, when(l.Prepared.Time))
	}
	var rows [][]string
	for _, p := range l.Published {
		rows = append(rows, []string{p.Bookmark, when(p.At), dash(p.By), strconv.Itoa(p.Fingerprints), size(p.ReadBytes)})
	}
	table("PUBLISHED AT BY VALUES SEARCHED", rows)
}

func liveClonesCommand() *cobra.Command { return liveList("liveclones") }

func liveList(use string) *cobra.Command {
	return &cobra.Command{Use: use, Short: "List LiveClones, and what of them is published", Args: takes(0), Example: "  tidemark liveclones", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().LiveClones(cmd.Context()), func(list []tidemark.LiveClone) {
			var rows [][]string
			for _, l := range list {
				prepared := ""
				if l.Prepared != nil {
					prepared = l.Prepared.Bookmark
				}
				rows = append(rows, []string{l.Name, strings.Join(l.Sources, " "), dash(l.Host), l.State, dash(prepared), dash(strings.Join(l.Bookmarks, " "))})
			}
			table("NAME OF HOST STATE PREPARED PUBLISHED", rows)
		})
	}}
}

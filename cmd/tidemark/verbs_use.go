package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/client"
)

// pointsCommand prints, with --json, the list of points alone: scripts rely on that.
func pointsCommand() *cobra.Command {
	var intervals bool
	c := &cobra.Command{Use: "points APP", Short: "List recoverable points and intervals", Args: takes(0, aName), ValidArgsFunction: anyName,
		Example: "  tidemark points orders\n  tidemark points orders --intervals --json | jq .gaps",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := pointsOf(cmd.Context(), server(), args[0])
			if err != nil {
				return err
			}
			var facts any = p.Points
			if intervals {
				facts = p
			}
			return show(facts, func() { printPoints(p) })
		}}
	c.Flags().BoolVar(&intervals, "intervals", false, "with --json: also the times of which any point can be had, and the gaps")
	return c
}

// pointsOf asks for all that can be recovered of an application.
func pointsOf(ctx context.Context, c *client.Client, app string) (p tidemark.Points, err error) {
	if p.Points, err = client.Collect(c.Points(ctx, app)); err != nil {
		return p, err
	}
	any, err := c.Intervals(ctx, app)
	if err != nil {
		return p, err
	}
	p.Application, p.Covered, p.Gaps = app, any.Covered, any.Gaps
	p.Moments, err = client.Collect(c.Proofs(ctx, app))
	return p, err
}

func printPoints(p tidemark.Points) {
	var rows [][]string
	for _, r := range p.Points {
		lsn, hold := r.Labels["stop_lsn"], ""
		if lsn == "" {
			lsn = r.Labels["lsn"]
		}
		if r.Hold > 0 {
			hold = fmt.Sprintf("%.1fms", r.Hold)
		}
		rows = append(rows, []string{r.Bookmark, r.Position.String(), when(r.Time), string(r.Consistency), dash(hold), dash(lsn), proven(r.Proven), published(r.Published), r.Labels["problems"]})
	}
	table("BOOKMARK POSITION TIME CONSISTENCY HOLD LSN PROVEN PUBLISHED PROBLEMS", rows)
	printMoments(p.Moments)
	for _, c := range p.Covered {
		fmt.Printf("any time from %s to %s\n", when(c.From), when(c.To))
	}
	for _, g := range p.Gaps {
		until := "now"
		if !g.To.IsZero() {
			until = when(g.To)
		}
		fmt.Printf("nothing from %s to %s: %s\n", when(g.From), until, g.Reason)
	}
}

// published is what the list of points says of a publication.
func published(p *tidemark.Publication) string {
	if p == nil {
		return "-"
	}
	return when(p.At)
}

func diskFlag(c *cobra.Command, disk *string) {
	c.Flags().StringVar(disk, "disk", "", "the disk, if the application has several")
}

func hostFlag(c *cobra.Command, host *string, what string) {
	c.Flags().StringVar(host, "host", "", what)
}

func exportCommand() *cobra.Command {
	var spec tidemark.ExportSpec
	c := &cobra.Command{Use: "export APP[@POINT]", Short: "Serve a point over NBD; prints its URI", Args: takes(0, aRef), ValidArgsFunction: anyName,
		Example: "  tidemark export scratch --writable\n  qemu-img info \"$(tidemark export scratch@nightly --json | jq -r .uri)\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Ref = args[0]
			if spec.TLS != "" {
				var err error
				if spec.TLS, err = filepath.Abs(spec.TLS); err != nil {
					return err
				}
			}
			return tell(func(e tidemark.Export) { fmt.Println(e.URI) })(server().Export(cmd.Context(), spec))
		}}
	diskFlag(c, &spec.Disk)
	c.Flags().BoolVar(&spec.Writable, "writable", false, "writes go to the volume or clone")
	c.Flags().StringVar(&spec.Listen, "nbd", "", "unix:/PATH or tcp:HOST:PORT (default: the server's own socket)")
	c.Flags().StringVar(&spec.TLS, "tls", "", "directory with ca-cert.pem, server-cert.pem and server-key.pem: clients need a certificate of that authority")
	c.Flags().BoolVar(&spec.Insecure, "insecure", false, "serve tcp without TLS to everybody who reaches it")
	return c
}

func exportsCommand() *cobra.Command {
	return &cobra.Command{Use: "exports", Short: "List what is served over NBD", Args: takes(0), Example: "  tidemark exports", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Exports(cmd.Context()), func(list []tidemark.Export) {
			var rows [][]string
			for _, e := range list {
				rows = append(rows, []string{e.Name, e.Ref, e.Disk, size(e.Size), e.URI})
			}
			table("NAME POINT DISK SIZE URI", rows)
		})
	}}
}

func unexportCommand() *cobra.Command {
	return &cobra.Command{Use: "unexport NAME", Short: "End an export", Args: takes(0, aName), ValidArgsFunction: exportNames,
		Example: "  tidemark unexport scratch",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().Unexport(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is no longer exported") })
		}}
}

func mountCommand() *cobra.Command {
	var spec tidemark.MountSpec
	var life string
	c := &cobra.Command{Use: "mount APP[@POINT] [DIR]", Short: "Attach a point to a host as a disk, and mount its files on DIR", Args: takes(1, aRef, aAny), ValidArgsFunction: anyName,
		Example: "  tidemark mount files@-2h /mnt/files\n  tidemark mount files@-2h /mnt/files --host db1\n  tidemark mount orders@nightly --disk data --name look",
		Long:    "Attach a point as a disk to the server's host, or with --host to one whose agent\nhas joined, and mount its file system on the empty directory DIR there, if one\nis given. What is written goes to the mount, never to the point, and is gone\nwith `tidemark unmount`.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Ref = args[0]
			if cmd.Flags().Changed("name") {
				if err := tidemark.CheckName(spec.Name); err != nil {
					return usage(err)
				}
			}
			switch {
			case len(args) < 2:
			case spec.Host == "":
				if spec.Path, err = filepath.Abs(args[1]); err != nil {
					return err
				}
			case !filepath.IsAbs(args[1]):
				return usage(tidemark.Errorf(tidemark.Invalid, "%q is no absolute path on host %s", args[1], spec.Host).WithHint("write it from / on"))
			default:
				spec.Path = filepath.Clean(args[1])
			}
			if spec.Lifetime, err = parseSeconds("for", life); err != nil {
				return usage(err)
			}
			return tell(func(m tidemark.Mount) {
				fmt.Printf("%s  %s  %s  %s  in %s\n", m.Name, m.Ref, onHost(m.Host, m.Device), dash(m.Path), seconds(m.Seconds))
			})(server().Mount(cmd.Context(), spec))
		}}
	expiry(c, &life)
	diskFlag(c, &spec.Disk)
	hostFlag(c, &spec.Host, "the host to attach it to (default: the server's own)")
	c.Flags().BoolVar(&spec.ReadOnly, "read-only", false, "mount the file system read-only")
	c.Flags().StringVar(&spec.Name, "name", "", "the mount's name (default: made of the application's)")
	return c
}

func mountsCommand() *cobra.Command {
	return &cobra.Command{Use: "mounts", Short: "List mounts", Args: takes(0), Example: "  tidemark mounts", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Mounts(cmd.Context()), func(list []tidemark.Mount) {
			var rows [][]string
			for _, m := range list {
				rows = append(rows, []string{m.Name, m.Ref, m.Disk, dash(m.Host), m.Device, m.State, when(m.Since), dash(m.Path)})
			}
			table("NAME POINT DISK HOST DEVICE STATE SINCE PATH", rows)
		})
	}}
}

func unmountCommand() *cobra.Command {
	return &cobra.Command{Use: "unmount NAME|DIR", Short: "Take a mount back; what was written to it is gone", Args: takes(0, aAny), ValidArgsFunction: mountNames,
		Example: "  tidemark unmount /mnt/files",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := mountAt(cmd, args[0])
			if err == nil {
				err = server().Unmount(cmd.Context(), name)
			}
			if err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is unmounted") })
		}}
}

// mountAt returns the name of the mount that somebody means by its name or its directory.
func mountAt(cmd *cobra.Command, what string) (string, error) {
	dir, err := filepath.Abs(what)
	if err != nil {
		return "", err
	}
	named := ""
	for m, err := range server().Mounts(cmd.Context()) {
		switch {
		case err != nil:
			return "", err
		case m.Name == what:
			return what, nil
		case m.Path != "" && (m.Path == what || m.Path == dir):
			named = m.Name
		}
	}
	if named == "" {
		return "", tidemark.Errorf(tidemark.NotFound, "there is no mount %q", what).WithHint("`tidemark mounts` lists them")
	}
	return named, nil
}

// onHost names what is on a host.
func onHost(host, what string) string {
	if host == "" {
		return what
	}
	return host + ":" + what
}

func printClone(k tidemark.Clone) {
	on := ""
	if k.Host != "" {
		on = "  on " + k.Host
	}
	fmt.Printf("%s  %s  %s%s  in %s\n", k.Name, k.Source, k.Connection, on, seconds(k.Seconds))
}

func cloneCommand() *cobra.Command {
	var spec tidemark.CloneSpec
	var life string
	c := &cobra.Command{Use: "clone APP[@POINT] NAME", Short: "A thin writable copy, with its application up", Args: takes(0, aRef, aName), ValidArgsFunction: anyName,
		Example: "  tidemark clone orders dev\n  tidemark clone orders@2026-11-23T14:03:07 before --port 6000\n  tidemark clone orders fixed --to 0/3000060\n  tidemark clone dev dev2\n  tidemark clone orders test --host db2 --listen 10.0.0.7",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Ref, spec.Name = args[0], args[1]
			var err error
			if spec.Lifetime, err = parseSeconds("for", life); err != nil {
				return usage(err)
			}
			return work(cmd, printClone)(server().Clone(cmd.Context(), spec))
		}}
	expiry(c, &life)
	c.Flags().IntVar(&spec.Port, "port", 0, "the database's port (default: a free one)")
	c.Flags().StringVar(&spec.To, "to", "", "replay the log to a time, a log position, or latest")
	hostFlag(c, &spec.Host, "the host to bring it up on (default: the server's own)")
	c.Flags().StringVar(&spec.Listen, "listen", "", "an IP address of its host on which the database can be reached from others, with passwords")
	c.AddCommand(cloneRemove(), cloneList("ls"), cloneExtend(), cloneShare())
	return c
}

func cloneRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Stop a clone and delete it; clones of it stay", Args: takes(0, aName), ValidArgsFunction: cloneNames,
		Example: "  tidemark clone rm dev",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveClone(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is deleted") })
		}}
}

func clonesCommand() *cobra.Command { return cloneList("clones") }

func cloneList(use string) *cobra.Command {
	return &cobra.Command{Use: use, Short: "List clones", Args: takes(0), Example: "  tidemark clones", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Clones(cmd.Context()), func(list []tidemark.Clone) {
			var rows [][]string
			for _, k := range list {
				rows = append(rows, []string{k.Name, k.Source, dash(k.Host), k.State, port(k.Port), size(k.OwnBytes), dash(strings.Join(k.Bookmarks, ",")), k.Connection})
			}
			table("NAME OF HOST STATE PORT OWN PUBLISHED CONNECTION", rows)
		})
	}}
}

func port(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func refreshCommand() *cobra.Command {
	return &cobra.Command{Use: "refresh NAME[@POINT]", Short: "Make a clone anew from its source, under the same name and port", Args: takes(0, aRef), ValidArgsFunction: cloneNames,
		Example: "  tidemark refresh dev\n  tidemark refresh dev@nightly",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := tidemark.ParseRef(args[0])
			if err != nil {
				return usage(err)
			}
			spec := tidemark.RefreshSpec{Name: r.App}
			if !r.Point.Latest() {
				spec.Point = r.Point.String()
			}
			return work(cmd, printClone)(server().Refresh(cmd.Context(), spec))
		}}
}

func restoreCommand() *cobra.Command {
	var spec tidemark.RestoreSpec
	c := &cobra.Command{Use: "restore APP@POINT --to FILE|DEVICE|DIR | --in-place", Short: "Write a point to a file or device, or its files to a directory", Args: takes(0, aRef), ValidArgsFunction: anyName,
		Long: `Write a point to a file or device, or its files to a directory.

With --in-place, the disks of a tapped application themselves are taken back:
only what differs is written, through the tap. Nobody may use them meanwhile.
What they held until then becomes a clone; to restore that in place undoes it.`,
		Example: "  tidemark restore scratch@nightly --to /srv/scratch.img\n  tidemark restore files@-2h --to /srv/files.old\n  tidemark restore orders@-5m --in-place",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Ref = args[0]
			if spec.InPlace && spec.To == "" {
				return work(cmd, printTakenBack)(server().Restore(cmd.Context(), spec))
			}
			if spec.To == "" || spec.InPlace {
				return usage(errors.New("give --to with a new file, a device, or an empty directory, or else --in-place"))
			}
			if spec.To, err = filepath.Abs(spec.To); err != nil {
				return err
			}
			return work(cmd, func(r tidemark.Restored) {
				fmt.Printf("%s is restored to %s: %s in %s\n", r.Ref, r.To, size(r.Bytes), seconds(r.Seconds))
				for _, n := range r.Notes {
					fmt.Println("note:", n)
				}
			})(server().Restore(cmd.Context(), spec))
		}}
	diskFlag(c, &spec.Disk)
	c.Flags().StringVar(&spec.To, "to", "", "a new file, a device, or an empty directory")
	c.Flags().BoolVar(&spec.Force, "force", false, "overwrite what is there")
	c.Flags().BoolVar(&spec.InPlace, "in-place", false, "take the tapped disks themselves back")
	return c
}

func printTakenBack(r tidemark.RestoredInPlace) {
	fmt.Printf("%s is what it was at %s: %s differed, in %s\n", r.To, r.Ref, size(r.Changed), seconds(r.Seconds))
	app, _, _ := strings.Cut(r.Ref, "@")
	fmt.Printf("what it held is the clone %s; to undo this: tidemark restore %s@%s --in-place\n", r.Before, app, r.Before)
}

func diffCommand() *cobra.Command {
	var spec tidemark.DiffSpec
	c := &cobra.Command{Use: "diff APP@A APP@B", Short: "List what differs between two points", Args: takes(0, aRef, aRef), ValidArgsFunction: anyName,
		Example: "  tidemark diff scratch@monday scratch@tuesday",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.A, spec.B = args[0], args[1]
			return tell(func(d tidemark.Diff) {
				var rows [][]string
				for _, e := range d.Extents {
					rows = append(rows, []string{e.Disk, strconv.FormatInt(e.Off, 10), strconv.FormatInt(e.Len, 10)})
				}
				table("DISK OFFSET LENGTH", rows)
				fmt.Printf("%s in %d extents\n", size(d.ChangedBytes), len(d.Extents))
			})(server().Diff(cmd.Context(), spec))
		}}
	diskFlag(c, &spec.Disk)
	return c
}

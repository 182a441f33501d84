package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
)

func discoverCommand() *cobra.Command {
	var host string
	c := &cobra.Command{Use: "discover", Short: "List what on a host could be protected", Args: takes(0), Example: "  tidemark discover\n  tidemark discover --host db1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return tell(func(list []tidemark.Discovered) {
				var rows [][]string
				for _, d := range list {
					rows = append(rows, []string{string(d.Type), d.Source, size(d.Size), d.Detail})
				}
				table("TYPE SOURCE SIZE DETAIL", rows)
			})(server().Sources(cmd.Context(), host))
		}}
	hostFlag(c, &host, "the host to look at (default: the server's own)")
	return c
}

func protectCommand() *cobra.Command {
	var f protectFlags
	c := &cobra.Command{Use: "protect postgres://…|DIR|DEVICE...|qemu:SOCKET --name APP", Short: "Make something an application", Args: cobra.MinimumNArgs(1),
		Long: `Make a PostgreSQL cluster, a directory, a block device or a virtual machine an
application. Nothing is captured yet.

A cluster is named by a connection URL without password: passwords come from
the server's PGPASSWORD or password file. Its log is streamed from now on.
Options: disk_size=SIZE of the staging disk (thin), wal_limit=SIZE that the
cluster may keep for us before the log stream is given up.

With --host it is a directory, cluster or, with --cdp, a device of another host,
whose agent has joined. What differs travels, compressed, and so does the log of
a cluster.

With --cdp a tap is put in front of a block device or the image of a disk: a
device is shown that is to be used instead of it, and every write is journaled,
so that any moment of the window can be had. Several devices share one order of
writes. The disk itself stays complete at any moment, with Tidemark or without.
Options: postgres=URL of a cluster on the disk, or scripts=DIR with the programs
pre and post, by which a bookmark makes it still, each in script_timeout=TIME;
appshot=INTERVAL makes such bookmarks by itself, and appshot_keep=TIME says for
how long they are kept; queue_memory=SIZE and queue=SIZE are what the tap may
keep of writes that the server has not, in memory and then on disk (default
64MiB and 1GiB).

qemu:SOCKET, with --cdp, is a running machine of QEMU by a QMP socket of it:
every write of the guest to its disks is journaled, with nothing installed in
the guest. Options: disk=NAME,NAME for some of its disks, nbd=PATH of the unix
socket of its own NBD server, if it has one, guest_agent=PATH of the unix socket
of its guest agent, which freezes the guest for a bookmark; scripts=DIR,
script_timeout=TIME, appshot=INTERVAL and appshot_keep=TIME as above.

Of a volume or clone, whose writes are journaled as they are, --cdp sets the
window.`,
		Example: "  tidemark protect 'postgres:///?host=/var/run/postgresql' --name orders\n  tidemark protect /srv/files --name files\n  tidemark protect /dev/vg0/orders --cdp --name orders -o appshot=1m\n  tidemark protect qemu:/run/shop.qmp --cdp --name shop\n  tidemark protect scratch --cdp --window 48h",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(args)
			if err != nil {
				return usage(err)
			}
			if spec.Name == "" { // it has one
				if len(spec.Options) > 0 {
					return tidemark.Errorf(tidemark.Invalid, "of %s only the window can be set", spec.Source).WithHint("give --window and --window-size")
				}
				return work(cmd, printProtected)(server().ChangeApplication(cmd.Context(), spec.Source, tidemark.ApplicationChange{Window: spec.Window}))
			}
			return work(cmd, printProtected)(server().Protect(cmd.Context(), spec))
		}}
	c.Flags().StringVar(&f.name, "name", "", "the application's name")
	c.Flags().StringArrayVarP(&f.options, "option", "o", nil, "KEY=VALUE of the application's type")
	c.Flags().BoolVar(&f.cdp, "cdp", false, "journal every write: any moment of the window can be had")
	c.Flags().DurationVar(&f.window, "window", 0, "with --cdp: the window, such as 48h (default 24h)")
	c.Flags().StringVar(&f.host, "host", "", "the host that it is on, if not the server's own")
	c.Flags().StringVar(&f.windowSize, "window-size", "", "with --cdp: the most that its journal may take, such as 50GiB")
	return c
}

// protectFlags are what protect is called with.
type protectFlags struct {
	name, windowSize string
	host             string
	options          []string
	cdp              bool
	window           time.Duration
}

// spec makes a request of the flags and arguments.
func (f *protectFlags) spec(args []string) (spec tidemark.ProtectSpec, err error) {
	spec = tidemark.ProtectSpec{Name: f.name, CDP: f.cdp, Host: f.host}
	ours := f.cdp && f.name == "" && f.host == "" && len(args) == 1 && tidemark.CheckName(args[0]) == nil // a volume or clone, which has a name
	if _, err := os.Stat(args[0]); ours && err == nil {
		ours = false
	}
	if !ours && f.name == "" {
		return spec, tidemark.Errorf(tidemark.Invalid, "%s is to be known by a name", args[0]).WithHint("give it one with --name")
	}
	if !ours {
		if err := tidemark.CheckName(f.name); err != nil {
			return spec, err
		}
	}
	for i, source := range args {
		if path, ok := strings.CutPrefix(source, "qemu:"); ok && path != "" {
			if path, err = filepath.Abs(path); err != nil {
				return spec, err
			}
			source = "qemu:" + path
		} else if f.host != "" && !filepath.IsAbs(source) && !strings.Contains(source, "://") && !strings.Contains(source, "=") {
			return spec, tidemark.Errorf(tidemark.Invalid, "%q is no absolute path", source).WithHint("write it as it is on host " + f.host)
		} else if !ours && !strings.Contains(source, ":/") && !strings.Contains(source, "=") {
			if source, err = filepath.Abs(source); err != nil {
				return spec, err
			}
		}
		if i == 0 {
			spec.Source = source
		} else {
			spec.Also = append(spec.Also, source)
		}
	}
	if spec.Options, err = parseOptions(f.options); err != nil {
		return spec, err
	}
	spec.Window, err = f.windowSpec()
	return spec, err
}

// parseOptions reads options that were written as KEY=VALUE.
func parseOptions(list []string) (map[string]string, error) {
	options := map[string]string{}
	for _, o := range list {
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			return nil, tidemark.Errorf(tidemark.Invalid, "%q is not KEY=VALUE", o)
		}
		options[k] = v
	}
	return options, nil
}

// windowSpec is the window that was asked for, or nil.
func (f *protectFlags) windowSpec() (*tidemark.Window, error) {
	if f.window == 0 && f.windowSize == "" {
		return nil, nil
	}
	w := &tidemark.Window{Seconds: int64(f.window / time.Second)}
	if f.window != 0 && w.Seconds <= 0 {
		return nil, tidemark.Errorf(tidemark.Invalid, "a window of %v keeps nothing", f.window).WithHint("write 48h")
	}
	if f.windowSize != "" {
		n, err := tidemark.ParseSize(f.windowSize)
		if err != nil {
			return nil, err
		}
		w.Bytes = n
	}
	return w, nil
}

func printProtected(a tidemark.Application) {
	switch {
	case strings.HasPrefix(a.Source, "qemu:"):
		for _, d := range a.Tap.Disks {
			fmt.Printf("every write of the machine to %s is journaled as %s of %s\n", d.Primary, d.Disk, a.Name)
		}
		fmt.Println("`tidemark status` shows when what was there before has arrived, too: any point from then on can be had")
	case a.Tap != nil:
		where := "Use"
		if a.Tap.Host != "" {
			where = "On " + a.Tap.Host + ", use"
		}
		fmt.Printf("every write to %s is journaled. %s this from now on, not the disk itself:\n", a.Name, where)
		for _, d := range a.Tap.Disks {
			fmt.Printf("  %s  instead of %s\n", d.Device, d.Primary)
		}
		fmt.Println("`tidemark status` shows when all of it has arrived.")
	case a.Window != nil && a.Source == "":
		fmt.Printf("any moment of the last %v of %s can be had\n", time.Duration(a.Window.Seconds)*time.Second, a.Name)
	default:
		fmt.Printf("%s is protected as %s. Capture it: tidemark capture %s\n", a.Source, a.Name, a.Name)
	}
}

func resyncCommand() *cobra.Command {
	return &cobra.Command{Use: "resync APP", Short: "Send all of a tapped disk again", Args: takes(0, aName), ValidArgsFunction: appNames,
		Long:    "Send all of a tapped application's disks again: for the case that somebody wrote\nto a disk itself while no tap stood in front of it, and it was not noticed.\nThere are no points until it is done.",
		Example: "  tidemark resync orders",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().Resync(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println("all of", args[0], "is sent again; `tidemark status` shows how far it is") })
		}}
}

func unprotectCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "unprotect APP", Short: "End a protection and delete its points; clones stay", Args: takes(0, aName), ValidArgsFunction: appNames,
		Long: `End a protection, and delete all points of it: what only they have is gone.
Clones and mounts stay. A tapped disk is what it was, without Tidemark. On a
terminal it asks first.`,
		Example: "  tidemark unprotect orders\n  tidemark unprotect orders --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := agreeToDelete(cmd, args[0]); err != nil {
					return err
				}
			}
			if err := server().Unprotect(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is no longer protected") })
		}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// agreeToDelete asks whoever sits at a terminal whether the points of an application may go.
func agreeToDelete(cmd *cobra.Command, app string) error {
	if !atTerminal() {
		return nil
	}
	p, err := pointsOf(cmd.Context(), server(), app)
	if err != nil || len(p.Points)+len(p.Covered) == 0 {
		return err
	}
	what := fmt.Sprintf("%d bookmarks of %s", len(p.Points), app)
	if n := len(p.Covered); n > 0 {
		what += fmt.Sprintf(" and any moment since %s", when(p.Covered[0].From))
	}
	return confirm(what + " are deleted, and nothing brings them back.")
}

func printCapture(r tidemark.CaptureResult) {
	fmt.Printf("%s@%s  read %s, changed %s, stored %s, in %s\n", r.Application, r.Point.Bookmark, size(r.ReadBytes), size(r.ChangedBytes), size(r.StoredBytes), seconds(r.Seconds))
	for _, n := range r.Notes {
		fmt.Println("note:", n)
	}
}

func captureCommand() *cobra.Command {
	var spec tidemark.CaptureSpec
	c := &cobra.Command{Use: "capture APP", Short: "Bring the changes of an application in; ends in a bookmark", Args: takes(0, aName), ValidArgsFunction: anyName,
		Example: "  tidemark capture orders --bookmark before-upgrade",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Application = args[0]
			if err := checkBookmark(spec.Bookmark); err != nil {
				return err
			}
			return work(cmd, printCapture)(server().Capture(cmd.Context(), spec))
		}}
	c.Flags().StringVar(&spec.Bookmark, "bookmark", "", "a name for the point (default: made of the time)")
	return c
}

func bookmarkCommand() *cobra.Command {
	return &cobra.Command{Use: "bookmark APP NAME", Short: "Mark now; no data is copied", Args: takes(0, aName, aBookmark), ValidArgsFunction: anyName,
		Example: "  tidemark bookmark scratch before-upgrade",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(func(p tidemark.RecoveryPoint) {
				fmt.Printf("%s@%s  %v  %s-consistent%s\n", args[0], p.Bookmark, p.Position, p.Consistency, held(p))
				printNotes(p)
			})(server().Bookmark(cmd.Context(), tidemark.BookmarkSpec{Application: args[0], Name: args[1]}))
		}}
}

// held says for how long a bookmark held writes, and programs the application, if they did.
func held(p tidemark.RecoveryPoint) (text string) {
	if p.Hold > 0 {
		text = fmt.Sprintf(", writes held for %.1f ms", p.Hold)
	}
	if ms := p.Labels["scripts_ms"]; ms != "" {
		text += ", from pre to post " + ms + " ms"
	}
	return text
}

// printNotes says why a bookmark is worth less than it could be, and what went wrong behind it.
func printNotes(p tidemark.RecoveryPoint) {
	if why := p.Labels["problems"]; why != "" {
		fmt.Println("note:", why)
	}
	if after := p.Labels["after"]; after != "" {
		fmt.Println("after the mark:", after)
	}
}

func volumeCommand() *cobra.Command {
	return group(&cobra.Command{Use: "volume", Short: "Block volumes that live on Tidemark"},
		volumeCreate(), volumeImport(), volumeList(), volumeShow(), volumeRemove())
}

// chunkFlag adds --chunk to a command.
func chunkFlag(c *cobra.Command, s *string) {
	c.Flags().StringVar(s, "chunk", "", "chunk size (default "+size(tidemark.DefaultChunk)+")")
}

func parseChunk(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := tidemark.ParseSize(s)
	if err == nil {
		err = tidemark.CheckChunk(n)
	}
	return int(n), usage(err)
}

func volumeCreate() *cobra.Command {
	var sizeText, chunk string
	c := &cobra.Command{Use: "create NAME --size SIZE", Short: "Make an empty volume", Args: takes(0, aName),
		Example: "  tidemark volume create scratch --size 10GiB",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := tidemark.VolumeSpec{Name: args[0]}
			var err error
			if spec.Size, err = tidemark.ParseSize(sizeText); err == nil {
				err = tidemark.CheckDiskSize(spec.Size)
			}
			if err != nil {
				return usage(err)
			}
			if spec.Chunk, err = parseChunk(chunk); err != nil {
				return err
			}
			return tell(printVolume)(server().CreateVolume(cmd.Context(), spec))
		}}
	c.Flags().StringVar(&sizeText, "size", "", "size, such as 10GiB")
	chunkFlag(c, &chunk)
	_ = c.MarkFlagRequired("size")
	return c
}

func volumeImport() *cobra.Command {
	var spec tidemark.ImportSpec
	var chunk string
	c := &cobra.Command{Use: "import NAME FILE|DEVICE", Short: "Make a volume equal to a file or device", Args: takes(0, aName, aAny),
		Long:    "Make a volume equal to a file or block device of the server's host, and bookmark\nit. The volume is made if there is none; later, only what differs is stored.\nNothing may write to the source meanwhile.",
		Example: "  tidemark volume import legacy /srv/legacy.img --bookmark first",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkBookmark(spec.Bookmark); err != nil {
				return err
			}
			if spec.Chunk, err = parseChunk(chunk); err != nil {
				return err
			}
			spec.Name = args[0]
			if spec.Path, err = filepath.Abs(args[1]); err != nil {
				return err
			}
			return work(cmd, printCapture)(server().ImportVolume(cmd.Context(), spec))
		}}
	c.Flags().StringVar(&spec.Bookmark, "bookmark", "", "a name for the point (default: made of the time)")
	chunkFlag(c, &chunk)
	return c
}

func volumeList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List volumes", Args: takes(0), Example: "  tidemark volume ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Volumes(cmd.Context()), func(list []tidemark.VolumeInfo) {
			var rows [][]string
			for _, v := range list {
				rows = append(rows, []string{v.Name, size(v.Size), size(v.LogicalBytes), size(v.StoredBytes), when(v.Created)})
			}
			table("NAME SIZE DATA STORED CREATED", rows)
		})
	}}
}

func printVolume(v tidemark.VolumeInfo) {
	fmt.Printf("%s  size %s, data %s, stored %s (journal %s)\n", v.Name, size(v.Size), size(v.LogicalBytes), size(v.StoredBytes), size(v.JournalBytes))
}

func volumeShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Describe a volume, or the disks of any application", Args: takes(0, aName), ValidArgsFunction: volumeNames,
		Example: "  tidemark volume show legacy --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(printVolume)(server().Volume(cmd.Context(), args[0]))
		}}
}

func volumeRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Delete a volume with all its points", Args: takes(0, aName), ValidArgsFunction: volumeNames,
		Example: "  tidemark volume rm scratch",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveVolume(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is deleted; `tidemark reclaim` gives its space back") })
		}}
}

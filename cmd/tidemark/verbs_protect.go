package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
)

func discoverCommand() *cobra.Command {
	return &cobra.Command{Use: "discover", Short: "List what on the server's host could be protected", Args: takes(0), Example: "  tidemark discover",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, "discover", nil, func(list []tidemark.Discovered) {
				var rows [][]string
				for _, d := range list {
					rows = append(rows, []string{string(d.Type), d.Source, size(d.Size), d.Detail})
				}
				table("TYPE SOURCE SIZE DETAIL", rows)
			})
		}}
}

func protectCommand() *cobra.Command {
	var spec tidemark.ProtectSpec
	var options []string
	c := &cobra.Command{Use: "protect postgres://…|DIR|DEVICE --name APP", Short: "Make something an application: nothing is captured yet", Args: takes(0, aAny),
		Long: `Make a PostgreSQL cluster, a directory or a block device an application.

A cluster is named by a connection URL without password: passwords come from
the server's PGPASSWORD or password file. Its log is streamed from now on.

Options: disk_size=SIZE of the staging disk (thin), wal_limit=SIZE that the
cluster may keep for us before the log stream is given up.`,
		Example: "  tidemark protect 'postgres:///?host=/var/run/postgresql' --name orders\n  tidemark protect /srv/files --name files",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Source = args[0]
			if err := usage(tidemark.CheckName(spec.Name)); err != nil {
				return err
			}
			if !strings.Contains(spec.Source, "://") && !strings.Contains(spec.Source, "=") {
				abs, err := filepath.Abs(spec.Source)
				if err != nil {
					return err
				}
				spec.Source = abs
			}
			spec.Options = map[string]string{}
			for _, o := range options {
				k, v, ok := strings.Cut(o, "=")
				if !ok {
					return usage(tidemark.Errorf(tidemark.Invalid, "%q is not KEY=VALUE", o))
				}
				spec.Options[k] = v
			}
			return work(cmd, "protect", spec, func(a tidemark.Application) {
				fmt.Printf("%s is protected as %s. Capture it: tidemark capture %s\n", a.Source, a.Name, a.Name)
			})
		}}
	c.Flags().StringVar(&spec.Name, "name", "", "the application's name")
	c.Flags().StringArrayVarP(&options, "option", "o", nil, "KEY=VALUE of the application's type")
	_ = c.MarkFlagRequired("name")
	return c
}

func unprotectCommand() *cobra.Command {
	return &cobra.Command{Use: "unprotect APP", Short: "End a protection and delete its points; clones stay", Args: takes(0, aName), ValidArgsFunction: named("applications"),
		Example: "  tidemark unprotect orders",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().Named(cmd.Context(), "unprotect", args[0], nil); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is no longer protected") })
		}}
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
			return work(cmd, "capture", spec, printCapture)
		}}
	c.Flags().StringVar(&spec.Bookmark, "bookmark", "", "a name for the point (default: made of the time)")
	return c
}

func bookmarkCommand() *cobra.Command {
	return &cobra.Command{Use: "bookmark APP NAME", Short: "Mark now; no data is copied", Args: takes(0, aName, aName), ValidArgsFunction: anyName,
		Example: "  tidemark bookmark scratch before-upgrade",
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, "bookmark", tidemark.BookmarkSpec{Application: args[0], Name: args[1]}, func(p tidemark.RecoveryPoint) {
				fmt.Printf("%s@%s  %v  %s-consistent\n", args[0], p.Bookmark, p.Position, p.Consistency)
			})
		}}
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
			return ask(cmd, "volume-create", spec, printVolume)
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
			return work(cmd, "volume-import", spec, printCapture)
		}}
	c.Flags().StringVar(&spec.Bookmark, "bookmark", "", "a name for the point (default: made of the time)")
	chunkFlag(c, &chunk)
	return c
}

func volumeList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List volumes", Args: takes(0), Example: "  tidemark volume ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return ask(cmd, "volumes", nil, func(list []tidemark.VolumeInfo) {
			var rows [][]string
			for _, v := range list {
				rows = append(rows, []string{v.Name, size(v.Size), size(v.LogicalBytes), size(v.StoredBytes), when(v.Created)})
			}
			table("NAME SIZE DATA STORED CREATED", rows)
		})
	}}
}

func printVolume(v tidemark.VolumeInfo) {
	fmt.Printf("%s  size %s, data %s, stored %s\n", v.Name, size(v.Size), size(v.LogicalBytes), size(v.StoredBytes))
}

func volumeShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Describe a volume, or the disks of any application", Args: takes(0, aName), ValidArgsFunction: named("volumes"),
		Example: "  tidemark volume show legacy --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd, "volume", map[string]string{"name": args[0]}, printVolume)
		}}
}

func volumeRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Delete a volume with all its points", Args: takes(0, aName), ValidArgsFunction: named("volumes"),
		Example: "  tidemark volume rm scratch",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().Named(cmd.Context(), "volume-rm", args[0], nil); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is deleted; `tidemark reclaim` gives its space back") })
		}}
}

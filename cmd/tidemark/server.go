package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/api"
	"tidemark/control"
	"tidemark/export/nbd"
	"tidemark/timeline"
)

// socketName is the server's socket in its data directory.
const socketName = "tidemark.sock"

func serverCommand() *cobra.Command {
	var o control.Options
	var cache, reserve, hot string
	var verbose bool
	c := &cobra.Command{
		Use: "server", Short: "Run the server", Args: takes(0),
		Long:    "Run the server on a data directory. Everything it keeps lies below it, and so\ndoes its socket unless --socket names another place. It prints \"ready\" and its\nsocket when it serves, and runs until it is interrupted.",
		Example: "  tidemark server --data /var/lib/tidemark",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(sizeFlag(cache, &o.CacheBytes), sizeFlag(reserve, &o.Reserve), sizeFlag(hot, &o.HotBytes)); err != nil {
				return usage(err)
			}
			if o.HotFor < 0 {
				return usage(tidemark.Errorf(tidemark.Invalid, "--hot-journal-age %v is less than nothing", o.HotFor).WithHint("give a time such as 6h"))
			}
			if reserve != "" && o.Reserve == 0 {
				o.Reserve = -1 // none, not what is usual
			}
			if hot != "" && o.HotBytes == 0 {
				o.HotBytes = 1 // next to nothing, not what is usual
			}
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelInfo
			}
			o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return serve(cmd.Context(), o, flags.socket)
		},
	}
	c.Flags().StringVar(&o.Dir, "data", defaultData, "the data directory")
	c.Flags().StringVar(&o.Listen, "listen", "", "where to let the agents of other hosts in, as HOST:PORT (default nowhere)")
	c.Flags().StringVar(&cache, "cache", "", "memory for decoded chunks, such as 2GiB (default a quarter of the machine's)")
	c.Flags().StringVar(&reserve, "reserve", "", "bytes to keep free: with fewer, the oldest any-point history is given up;\n0 for none (default a fiftieth of the file system, but 1GiB at least and\n16GiB at most, and never more than a tenth)")
	c.Flags().StringVar(&hot, "hot-journal", "", "how much history of each journal stays beside the pool; what is more is moved\ninto it (default all if the pool is on the same file system, else 1GiB)")
	c.Flags().DurationVar(&o.HotFor, "hot-journal-age", 0, "how old history may be that stays beside the pool, such as 6h (default any)")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens, not only what goes wrong")
	return c
}

// sizeFlag reads a size that was given; an empty text leaves n as it is.
func sizeFlag(text string, n *int64) (err error) {
	if text != "" {
		*n, err = tidemark.ParseSize(text)
	}
	return err
}

// serve runs the server. socket is where it listens; "" stands for its place in the data directory.
func serve(ctx context.Context, o control.Options, socket string) (err error) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(timeline.Processors())
	}
	c, err := control.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if socket == "" {
		socket = filepath.Join(o.Dir, socketName)
	}
	if socket, err = filepath.Abs(socket); err != nil {
		return err
	}
	l, err := nbd.Listen("unix:" + socket) // a socket that only we may open
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: api.Handler(c, o.Logger), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	fmt.Println("ready", socket)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		o.Logger.Warn("systemd was not told that we are ready", "error", err)
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(bounded); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

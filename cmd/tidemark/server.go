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
	var cache string
	var verbose bool
	c := &cobra.Command{
		Use: "server", Short: "Run the server", Args: takes(0),
		Long:    "Run the server on a data directory. Everything it keeps lies below it, and so\ndoes its socket unless --socket names another place. It prints \"ready\" and its\nsocket when it serves, and runs until it is interrupted.",
		Example: "  tidemark server --data /var/lib/tidemark",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cache != "" {
				n, err := tidemark.ParseSize(cache)
				if err != nil {
					return usage(err)
				}
				o.CacheBytes = n
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
	c.Flags().StringVar(&cache, "cache", "", "memory for decoded chunks, such as 2GiB (default a quarter of the machine's)")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens, not only what goes wrong")
	return c
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

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/agent"
	"tidemark/internal/again"
)

// defaultAgentData is where an agent keeps what it has, unless --data says otherwise.
const defaultAgentData = "/var/lib/tidemark-agent"

// agentCommand is the agent of a host. Without an address it is the process that a server starts on its own host.
func agentCommand() *cobra.Command {
	var d agent.Daemon
	var address, tokenFile string
	var verbose, end bool
	c := &cobra.Command{
		Use: "agent --server HOST:PORT", Short: "Run the agent of a host that is not the server's", Args: takes(0),
		Long: `Run the agent of a host, so that its disks can be tapped from the server, and
points be mounted and cloned here. It dials the server; nothing listens on this
host. The first time it joins with a token, which the server makes by
` + "`tidemark host add NAME`" + `, and keeps a key and a certificate in its data
directory; the token is then good for nothing any more.

Taps go on without it, and without the server; mounts and clones without it.`,
		Example: "  tidemark agent --server backup.example.com:7440 --token-file /root/token",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if address == "" && !end {
				return agent.Run(cmd.Context())
			}
			if d.Dir, err = filepath.Abs(d.Dir); err != nil {
				return err
			}
			if end {
				return endTaps(cmd.Context(), &d)
			}
			if d.Server, err = agentServer(address); err != nil {
				return usage(err)
			}
			if d.Token, err = readToken(tokenFile); err != nil {
				return err
			}
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelInfo
			}
			d.Logger = slog.New(again.Once(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
			d.Ready = func(host string) {
				fmt.Println("connected as", host)
				if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
					d.Logger.Warn("systemd was not told that we are ready", "error", err)
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return d.Run(ctx)
		}}
	c.Flags().StringVar(&address, "server", "", "where the server listens for agents: HOST:PORT")
	c.Flags().StringVar(&tokenFile, "token-file", "", "file with the token to join with; needed once")
	c.Flags().StringVar(&d.Dir, "data", defaultAgentData, "the agent's data directory")
	c.Flags().BoolVar(&end, "end-taps", false, "end all taps of this host, take away what its server has shown here, and return: for when that is gone for good")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens, not only what goes wrong")
	return c
}

// endTaps ends the taps of a host without its server.
func endTaps(ctx context.Context, d *agent.Daemon) error {
	primaries, err := d.EndTaps(ctx)
	if err != nil {
		return err
	}
	return show(map[string][]string{"disks": primaries}, func() {
		for _, p := range primaries {
			fmt.Println(p, "is tapped no more: use it itself from now on")
		}
		if len(primaries) == 0 {
			fmt.Println("nothing is tapped")
		}
	})
}

// agentServer reads the address of a server: HOST:PORT, or that as a URL.
func agentServer(s string) (string, error) {
	if u, err := url.Parse(s); err == nil && u.Scheme == "https" && strings.Trim(u.Path, "/") == "" {
		s = u.Host
	}
	host, port, ok := strings.Cut(s, ":")
	if i := strings.LastIndex(s, ":"); i > 0 {
		host, port, ok = s[:i], s[i+1:], true
	}
	if !ok || host == "" || port == "" || strings.Contains(s, "/") {
		return "", tidemark.Errorf(tidemark.Invalid, "%q is no address of a server", s).WithHint("write HOST:PORT, as the server's --listen says")
	}
	return s, nil
}

// maxToken bounds a file with a token, in bytes.
const maxToken = 4 << 10

// readToken reads a token from a file, if one is named. That it is gone when the host has joined is fine.
func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err == nil && len(data) > maxToken {
		err = fmt.Errorf("it has %d bytes", len(data))
	}
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "the token cannot be read: %w", err)
	}
	return string(data), nil
}

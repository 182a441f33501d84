package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/access/oidc"
	"tidemark/api"
	"tidemark/catalog"
	"tidemark/control"
	"tidemark/export/nbd"
	"tidemark/internal/again"
	"tidemark/timeline"
)

// socketName is the server's socket in its data directory.
const socketName = "tidemark.sock"

func serverCommand() *cobra.Command {
	var o control.Options
	var cache, reserve, hot, catalogFile string
	var verbose, standby bool
	var at oidc.Config
	var secretFile string
	c := &cobra.Command{
		Use: "server", Short: "Run the server", Args: takes(0),
		Long:    "Run the server on a data directory. Everything it keeps lies below it, and so\ndoes its socket unless --socket names another place. It prints \"ready\" and its\nsocket when it serves, and runs until it is interrupted.",
		Example: "  tidemark server --data /var/lib/tidemark",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(sizeFlag(cache, &o.CacheBytes), sizeFlag(reserve, &o.Reserve), sizeFlag(hot, &o.HotBytes)); err != nil {
				return usage(err)
			}
			if o.HostJobs < 0 || o.Jobs < 0 {
				return usage(tidemark.Errorf(tidemark.Invalid, "less than no jobs cannot run").WithHint("give 1 or more, or 0 for what is usual"))
			}
			var err error
			if o.Catalog, err = catalogPlace(o.Catalog, catalogFile); err != nil {
				return err
			}
			if standby {
				o.StandBy = standsBy
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
			o.Logger = slog.New(again.Once(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
			provider, err := providerOf(at, secretFile)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), o, provider, flags.socket)
		},
	}
	c.Flags().StringVar(&o.Dir, "data", defaultData, "the data directory")
	c.Flags().StringVar(&o.Listen, "listen", "", "where to let the agents of other hosts in, and users of the API, as HOST:PORT\n(default nowhere)")
	c.Flags().StringVar(&o.Catalog, "catalog", "", "a PostgreSQL for the catalog, as postgres://USER@HOST/DATABASE, which several\nservers may share (default $TIDEMARK_CATALOG, or a file in the data directory)")
	c.Flags().StringVar(&catalogFile, "catalog-file", "", "a file that holds that URL: a password belongs there, not on a command line")
	c.Flags().StringVar(&at.Issuer, "oidc-issuer", "", "an OpenID provider that users may log in at, as https://HOST/…")
	c.Flags().StringVar(&at.ClientID, "oidc-client", "", "what this server is called there")
	c.Flags().StringVar(&secretFile, "oidc-secret-file", "", "a file with the secret of that client, if it has one")
	c.Flags().StringVar(&at.UserClaim, "oidc-user-claim", "", "the claim that is a user's name here (default preferred_username)")
	c.Flags().StringVar(&at.GroupsClaim, "oidc-groups-claim", "", "the claim that has his groups (default groups)")
	c.Flags().BoolVar(&standby, "standby", false, "if another server runs on the data directory, wait for its end and take over")
	c.Flags().IntVar(&o.HostJobs, "host-jobs", 0, "how many jobs may work on one host at a time (default 4)")
	c.Flags().IntVar(&o.Jobs, "jobs", 0, "how many jobs may run at a time (default by the number of processors)")
	c.Flags().StringVar(&cache, "cache", "", "memory for decoded chunks, such as 2GiB (default a quarter of the machine's)")
	c.Flags().StringVar(&reserve, "reserve", "", "bytes to keep free: with fewer, the oldest any-point history is given up;\n0 for none (default a fiftieth of the file system, but 1GiB at least and\n16GiB at most, and never more than a tenth)")
	c.Flags().StringVar(&hot, "hot-journal", "", "how much history of each journal stays beside the pool; what is more is moved\ninto it (default all if the pool is on the same file system, else 1GiB)")
	c.Flags().DurationVar(&o.HotFor, "hot-journal-age", 0, "how old history may be that stays beside the pool, such as 6h (default any)")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens, not only what goes wrong")
	return c
}

// providerOf is the OpenID provider of the flags; nil: none.
func providerOf(at oidc.Config, secretFile string) (*oidc.Provider, error) {
	if at.Issuer == "" {
		if at.ClientID != "" || secretFile != "" {
			return nil, usage(tidemark.Errorf(tidemark.Invalid, "a client of which OpenID provider?").WithHint("name it with --oidc-issuer"))
		}
		return nil, nil
	}
	if secretFile != "" {
		secret, err := readSecret(secretFile)
		if err != nil {
			return nil, err
		}
		at.ClientSecret = secret
	}
	p, err := oidc.New(at)
	return p, usage(err)
}

// catalogPlace is the URL of the catalog: that of a flag, of a file, or of the environment, or "" for a file in the data directory.
func catalogPlace(flag, file string) (string, error) {
	switch {
	case flag != "" && file != "":
		return "", usage(tidemark.Errorf(tidemark.Invalid, "--catalog and --catalog-file both say where the catalog is").WithHint("give one of them"))
	case file != "":
		text, err := os.ReadFile(file)
		if err != nil {
			return "", tidemark.Errorf(tidemark.Unavailable, "the file with the catalog's URL cannot be read: %w", err)
		}
		if hasPassword(strings.TrimSpace(string(text))) {
			if err := closedToOthers(file); err != nil {
				return "", err
			}
		}
		return catalogURL(strings.TrimSpace(string(text)), "the file "+file)
	case flag != "":
		if _, err := url.Parse(flag); err != nil { // its message would show what was written
			return "", usage(tidemark.Errorf(tidemark.Invalid, "--catalog is no URL").WithHint("write postgres://USER@HOST/DATABASE"))
		}
		if hasPassword(flag) {
			return "", usage(tidemark.Errorf(tidemark.Invalid, "a password on a command line can be read by everybody on this host").WithHint("use --catalog-file FILE, or TIDEMARK_CATALOG"))
		}
		return catalogURL(flag, "--catalog")
	}
	if env := os.Getenv("TIDEMARK_CATALOG"); env != "" {
		return catalogURL(env, "TIDEMARK_CATALOG")
	}
	return "", nil
}

// hasPassword reports whether a URL has a password in it.
func hasPassword(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false // nobody connects with that
	}
	_, secret := u.User.Password()
	return secret || u.Query().Has("password") || u.Query().Has("sslpassword")
}

func catalogURL(text, from string) (string, error) {
	if !catalog.Remote(text) {
		return "", usage(tidemark.Errorf(tidemark.Invalid, "%s holds no URL of a PostgreSQL", from).WithHint("write postgres://USER@HOST/DATABASE"))
	}
	return text, nil
}

// sizeFlag reads a size that was given; an empty text leaves n as it is.
func sizeFlag(text string, n *int64) (err error) {
	if text != "" {
		*n, err = tidemark.ParseSize(text)
	}
	return err
}

// standsBy tells that the server waits for the end of another. systemd is told that it has started: it may wait for weeks.
func standsBy() {
	fmt.Println("standing by")
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=standing by"); err != nil {
		slog.Warn("systemd was not told that we stand by", "error", err)
	}
}

// serve runs the server. socket is where it listens; "" stands for its place in the data directory.
func serve(ctx context.Context, o control.Options, provider *oidc.Provider, socket string) (err error) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(timeline.Processors())
	}
	c, err := control.Open(ctx, o)
	if err != nil && o.StandBy != nil && ctx.Err() != nil {
		return nil // it was stopped while it stood by
	}
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
	atSocket, fromNetwork := api.Handlers(c, o.Logger, provider)
	servers := []*http.Server{newHTTP(ctx, atSocket)}
	failed := make(chan error, 2)
	go func() { failed <- servers[0].Serve(l) }()
	if web := c.Web(); web != nil {
		servers = append(servers, newHTTP(ctx, fromNetwork))
		go func() { failed <- servers[1].Serve(web) }()
	}
	fmt.Println("ready", socket)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=serving"); err != nil {
		o.Logger.Warn("systemd was not told that we are ready", "error", err)
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	for _, srv := range servers {
		if err := srv.Shutdown(bounded); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// newHTTP is a server of the API. Nobody holds a connection for long who sends nothing.
func newHTTP(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)}
}

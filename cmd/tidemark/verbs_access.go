package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

var (
	aUser      = argument{access.CheckUser}
	aUserGroup = argument{access.CheckGroup}
	aNumber    = argument{func(s string) error {
		_, err := strconv.ParseInt(s, 10, 64)
		return err
	}}
)

func userCommand() *cobra.Command {
	return group(&cobra.Command{Use: "user", Short: "Users, who log in or have API tokens"}, userAdd(), userList(), userPassword(), userDisable(true), userDisable(false), userRemove())
}

func userAdd() *cobra.Command {
	var spec tidemark.UserSpec
	var withPassword bool
	c := &cobra.Command{Use: "add NAME", Short: "Add a user, who can do nothing before he has a grant", Args: takes(0, aUser),
		Example: "  tidemark user add alice\n  tidemark user add bob --password --display Bob",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Name = args[0]
			if withPassword {
				if spec.Password, err = askPassword("password of "+spec.Name, true); err != nil {
					return err
				}
			}
			return tell(func(u tidemark.User) { fmt.Println(u.Name, "is a user") })(server().AddUser(cmd.Context(), spec))
		}}
	c.Flags().StringVar(&spec.Display, "display", "", "what people call him")
	c.Flags().BoolVar(&withPassword, "password", false, "ask for a password, or read it from standard input")
	return c
}

// askPassword asks for a password at a terminal, twice if it is a new one, and else reads a line.
func askPassword(what string, twice bool) (string, error) {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return "", usage(tidemark.Errorf(tidemark.Invalid, "standard input has no password: %v", err))
		}
		return line, nil
	}
	read := func(what string) (string, error) {
		fmt.Fprint(os.Stderr, what, ": ")
		text, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(os.Stderr)
		return string(text), err
	}
	text, err := read(what)
	if err != nil || !twice {
		return text, err
	}
	again, err := read("once more")
	if err == nil && again != text {
		err = usage(tidemark.Errorf(tidemark.Invalid, "these are two passwords"))
	}
	return text, err
}

func userList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List users", Args: takes(0), Example: "  tidemark user ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return tell(func(list []tidemark.User) {
			var rows [][]string
			for _, u := range list {
				state := "active"
				if u.Disabled {
					state = "disabled"
				}
				rows = append(rows, []string{u.Name, state, when(u.Created), dash(u.Display)})
			}
			table("USER STATE CREATED DISPLAY", rows)
		})(client.Collect(server().Users(cmd.Context())))
	}}
}

func userPassword() *cobra.Command {
	return &cobra.Command{Use: "password NAME", Short: "Set a password; all sessions of the user end", Args: takes(0, aUser), Example: "  tidemark user password alice",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var change tidemark.PasswordChange
			me, err := server().Self(cmd.Context())
			if err == nil && me.User == args[0] {
				change.Old, err = askPassword("old password", false)
			}
			if err == nil {
				change.New, err = askPassword("new password of "+args[0], true)
			}
			if err == nil {
				err = server().SetPassword(cmd.Context(), args[0], change)
			}
			if err != nil {
				return err
			}
			return done("user", args[0], "has the new password")
		}}
}

func userDisable(disabled bool) *cobra.Command {
	use, short, said := "enable", "Let a user in again", "is let in again"
	if disabled {
		use, short, said = "disable", "Shut a user out at once, whatever secrets he has", "is shut out"
	}
	return &cobra.Command{Use: use + " NAME", Short: short, Args: takes(0, aUser), Example: "  tidemark user " + use + " alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().ChangeUser(cmd.Context(), args[0], tidemark.UserChange{Disabled: disabled}); err != nil {
				return err
			}
			return done("user", args[0], said)
		}}
}

func userRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Remove a user, with his grants, tokens and sessions", Args: takes(0, aUser), Example: "  tidemark user rm alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveUser(cmd.Context(), args[0]); err != nil {
				return err
			}
			return done("user", args[0], "is removed")
		}}
}

func userGroupCommand() *cobra.Command {
	act := func(use, short, example, said string, args []argument, fn func(ctx context.Context, args []string) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: takes(0, args...), Example: example, RunE: func(cmd *cobra.Command, args []string) error {
			if err := fn(cmd.Context(), args); err != nil {
				return err
			}
			return done("group", args[0], said)
		}}
	}
	return group(&cobra.Command{Use: "usergroup", Short: "Groups of users, to which grants can be given"},
		act("add GROUP", "Add a group of users", "  tidemark usergroup add developers", "is a group of users", []argument{aUserGroup},
			func(ctx context.Context, a []string) error { return server().AddUserGroup(ctx, a[0]) }),
		act("rm GROUP", "Remove a group of users, with its grants", "  tidemark usergroup rm developers", "is removed", []argument{aUserGroup},
			func(ctx context.Context, a []string) error { return server().RemoveUserGroup(ctx, a[0]) }),
		act("join GROUP USER", "Put a user into a group", "  tidemark usergroup join developers alice", "has the user", []argument{aUserGroup, aUser},
			func(ctx context.Context, a []string) error { return server().JoinUserGroup(ctx, a[0], a[1]) }),
		act("leave GROUP USER", "Take a user out of a group", "  tidemark usergroup leave developers alice", "has the user no more", []argument{aUserGroup, aUser},
			func(ctx context.Context, a []string) error { return server().LeaveUserGroup(ctx, a[0], a[1]) }),
		&cobra.Command{Use: "ls", Short: "List groups of users", Args: takes(0), Example: "  tidemark usergroup ls", RunE: func(cmd *cobra.Command, _ []string) error {
			return tell(func(list []tidemark.UserGroup) {
				var rows [][]string
				for _, g := range list {
					rows = append(rows, []string{g.Name, dash(strings.Join(g.Members, " "))})
				}
				table("GROUP MEMBERS", rows)
			})(client.Collect(server().UserGroups(cmd.Context())))
		}})
}

func grantCommand() *cobra.Command {
	return group(&cobra.Command{Use: "grant", Short: "Grants: who has which role over what"}, grantAdd(), grantList(), grantRemove())
}

func grantAdd() *cobra.Command {
	var apps, hosts, on, bookmarks []string
	var everything, anyPoint bool
	var clones, bytes, lifetime string
	c := &cobra.Command{Use: "add user:NAME|group:NAME ROLE", Short: "Give a user or group a role", Args: takes(0, aAny, aAny),
		Long: `Give a user, or a group of users, a role: admin, operator, owner, developer or
auditor. It is over applications (--app) or hosts (--host), by names and
patterns, or over --everything. An application covers all that is made of it.

A developer has limits: how many clones and mounts at a time, what they take,
how long they live, where they may be put, and which points may be taken. Those
that are not given are the strictest: published points, and no copy at all.`,
		Example: "  tidemark grant add user:ops operator --everything\n  tidemark grant add group:dev developer --app 'orders*' --clones 3 --on @server",
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := grantOf(args[0], args[1], apps, hosts, everything)
			if err == nil && access.Role(args[1]).Limited() {
				g.Limits, err = limitsOf(clones, bytes, lifetime)
				g.Limits.Hosts = patterns(on)
				g.Limits.Points = access.PointRule{Any: anyPoint, Bookmarks: patterns(bookmarks)}
			}
			if err != nil {
				return usage(err)
			}
			return tell(func(g access.Grant) { fmt.Printf("grant %d: %s is %s of %s\n", g.ID, g.Subject, g.Role, scopeOf(g)) })(server().AddGrant(cmd.Context(), g))
		}}
	f := c.Flags()
	f.StringSliceVar(&apps, "app", nil, "over these applications; * and ? stand for any characters")
	f.StringSliceVar(&hosts, "host", nil, "over these hosts; @server is the server's own")
	f.BoolVar(&everything, "everything", false, "over everything")
	f.StringVar(&clones, "clones", "0", "a developer's clones and mounts at a time, or any")
	f.StringVar(&bytes, "bytes", "0", "what they may take in the pool, such as 10GiB, or any")
	f.StringVar(&lifetime, "lifetime", "0", "how long one may live, such as 8h, or any")
	f.StringSliceVar(&on, "on", nil, "the hosts they may be put on; @server is the server's own")
	f.BoolVar(&anyPoint, "any-point", false, "of any point, not only of published ones")
	f.StringSliceVar(&bookmarks, "bookmark", nil, "also of bookmarks with such names")
	return c
}

func grantOf(subject, role string, apps, hosts []string, everything bool) (g access.Grant, err error) {
	kind, name, _ := strings.Cut(subject, ":")
	g = access.Grant{Subject: access.Subject{Kind: access.SubjectKind(kind), Name: name}, Role: access.Role(role)}
	if err := g.Subject.Check(); err != nil {
		return g, tidemark.Errorf(tidemark.Invalid, "%q is no user or group: %w", subject, err).WithHint("write user:NAME or group:NAME")
	}
	if g.Role, err = access.ParseRole(role); err != nil {
		return g, err
	}
	switch given := len(apps) > 0; {
	case everything && !given && len(hosts) == 0:
		g.Scope = access.Scope{Kind: access.Everything}
	case given && !everything && len(hosts) == 0:
		g.Scope = access.Scope{Kind: access.Applications, Names: patterns(apps)}
	case len(hosts) > 0 && !everything && !given:
		g.Scope = access.Scope{Kind: access.Hosts, Names: patterns(hosts)}
	default:
		return g, tidemark.Errorf(tidemark.Invalid, "a grant is over one sort of things").WithHint("give --app, --host or --everything; for both, make two grants")
	}
	return g, g.Scope.Check()
}

func patterns(texts []string) (list []access.Pattern) {
	for _, t := range texts {
		list = append(list, access.Pattern(t))
	}
	return list
}

// limitsOf reads limits, of which each may be any.
func limitsOf(clones, bytes, lifetime string) (l access.Limits, err error) {
	l = access.Limits{Clones: access.Unlimited, Bytes: access.Unlimited, Lifetime: access.Unlimited}
	if clones != "any" {
		if l.Clones, err = strconv.Atoi(clones); err != nil || l.Clones < 0 {
			return l, fmt.Errorf("--clones %q is neither a number nor any", clones)
		}
	}
	if bytes != "any" {
		if l.Bytes, err = tidemark.ParseSize(bytes); err != nil {
			return l, fmt.Errorf("--bytes: %w", err)
		}
	}
	if lifetime == "any" {
		return l, nil
	}
	if l.Lifetime = 0; lifetime != "0" {
		l.Lifetime, err = parseSeconds("lifetime", lifetime)
	}
	return l, err
}

// scopeOf is what a grant is over, in a few words.
func scopeOf(g access.Grant) string {
	return strings.TrimSpace(string(g.Scope.Kind) + " " + joined(g.Scope.Names, ","))
}

func grantList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List grants", Args: takes(0), Example: "  tidemark grant ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Grants(cmd.Context()), printGrants)
	}}
}

func printGrants(list []access.Grant) {
	var rows [][]string
	for _, g := range list {
		rows = append(rows, []string{strconv.FormatInt(g.ID, 10), g.Subject.String(), string(g.Role), scopeOf(g), dash(limitText(g))})
	}
	table("ID SUBJECT ROLE OVER LIMITS", rows)
}

// limitText is what the limits of a grant are, in a few words; empty: it has none.
func limitText(g access.Grant) string {
	if !g.Role.Limited() {
		return ""
	}
	number := func(n int64, text string) string {
		if n == access.Unlimited {
			return "any"
		}
		return text
	}
	points := "published points"
	switch {
	case g.Limits.Points.Any:
		points = "any point"
	case len(g.Limits.Points.Bookmarks) > 0:
		points += fmt.Sprintf(", bookmarks %v", g.Limits.Points.Bookmarks)
	}
	return fmt.Sprintf("%s copies, %s, %s each, on %v, of %s", number(int64(g.Limits.Clones), strconv.Itoa(g.Limits.Clones)), number(g.Limits.Bytes, size(g.Limits.Bytes)),
		number(g.Limits.Lifetime, (time.Duration(g.Limits.Lifetime)*time.Second).String()), g.Limits.Hosts, points)
}

func grantRemove() *cobra.Command {
	return &cobra.Command{Use: "rm ID", Short: "Take a grant back", Args: takes(0, aNumber), Example: "  tidemark grant rm 3", RunE: func(cmd *cobra.Command, args []string) error {
		id, _ := strconv.ParseInt(args[0], 10, 64)
		if err := server().RemoveGrant(cmd.Context(), id); err != nil {
			return err
		}
		return done("grant", args[0], "is taken back")
	}}
}

func tokenCommand() *cobra.Command {
	return group(&cobra.Command{Use: "token", Short: "API tokens, for programs"}, tokenMake(), tokenList(), tokenRevoke())
}

func tokenMake() *cobra.Command {
	var spec access.TokenSpec
	var file, lifetime string
	var roles, apps []string
	c := &cobra.Command{Use: "make NAME", Short: "Make an API token, whose secret is shown once", Args: takes(0, aName),
		Long: `Make an API token for oneself or, with --user, for somebody. It may do what its
user may, or less: --role and --app narrow it. Its secret is printed, or written
to a file, and cannot be shown again.`,
		Example: "  tidemark token make ci --for 30d --token-file ci.token\n  tidemark token make nightly --user alice --role developer --app orders",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			spec.Name, spec.Applications = args[0], patterns(apps)
			for _, r := range roles {
				spec.Roles = append(spec.Roles, access.Role(r))
			}
			if spec.Lifetime, err = parseSeconds("for", lifetime); err != nil {
				return usage(err)
			}
			if flags.json && file == "" {
				return usage(tidemark.Errorf(tidemark.Invalid, "a token is a secret, and no part of the JSON").WithHint("name a file for it with --token-file"))
			}
			var i tidemark.Issued
			err = giveSecret(file, "`tidemark token ls` lists the token, and `tidemark token revoke` ends it", func() (secret string, err error) {
				i, err = server().MakeToken(cmd.Context(), spec)
				return i.Secret, err
			})
			if err != nil || file == "" {
				return err
			}
			return show(map[string]any{"id": i.ID, "expires": i.Expires, "token_file": file}, func() { fmt.Printf("token %d, good until %s, is in %s\n", i.ID, when(i.Expires), file) })
		}}
	f := c.Flags()
	f.StringVar(&spec.User, "user", "", "for whom (default oneself)")
	f.StringVar(&lifetime, "for", "30d", "how long it is good, a year at most")
	f.StringSliceVar(&roles, "role", nil, "only what these roles may do")
	f.StringSliceVar(&apps, "app", nil, "only what belongs to these applications")
	f.StringVar(&file, "token-file", "", "write the token to this new file, which only you can read, instead of printing it")
	return c
}

func tokenList() *cobra.Command {
	var user string
	c := &cobra.Command{Use: "ls", Short: "List API tokens", Args: takes(0), Example: "  tidemark token ls --user alice", RunE: func(cmd *cobra.Command, _ []string) error {
		return tell(func(list []access.Token) {
			var rows [][]string
			for _, t := range list {
				used := "-"
				if !t.Used.IsZero() {
					used = when(t.Used)
				}
				rows = append(rows, []string{strconv.FormatInt(t.ID, 10), t.User, t.Name, when(t.Expires), used, dash(tokenBounds(t))})
			}
			table("ID USER NAME EXPIRES USED ONLY", rows)
		})(client.Collect(server().Tokens(cmd.Context(), user)))
	}}
	c.Flags().StringVar(&user, "user", "", "whose (default one's own, and at the socket everybody's)")
	return c
}

// tokenBounds is what a token is narrowed to, in a few words.
func tokenBounds(t access.Token) string {
	var parts []string
	for _, r := range t.Roles {
		parts = append(parts, string(r))
	}
	for _, a := range t.Applications {
		parts = append(parts, string(a))
	}
	return strings.Join(parts, " ")
}

func tokenRevoke() *cobra.Command {
	var user string
	c := &cobra.Command{Use: "revoke ID", Short: "End an API token", Args: takes(0, aNumber), Example: "  tidemark token revoke 3", RunE: func(cmd *cobra.Command, args []string) error {
		id, _ := strconv.ParseInt(args[0], 10, 64)
		if err := server().RevokeToken(cmd.Context(), user, id); err != nil {
			return err
		}
		return done("token", args[0], "is good for nothing any more")
	}}
	c.Flags().StringVar(&user, "user", "", "whose it is (default one's own)")
	return c
}

func loginCommand() *cobra.Command {
	var atProvider bool
	c := &cobra.Command{Use: "login [USER]", Short: "Log in to a server on the network; the commands after it use that", Args: takes(1, aUser),
		Long: `Log in to the server that --server names: with a password or, with --oidc, at
the OpenID provider that the server trusts. What the commands after it need is
kept in a file that only you can read: the server, the certificate of its
authority (--ca), and the secret of the session, which lasts for 12 hours.
Programs use API tokens: --as FILE, or TIDEMARK_TOKEN_FILE.`,
		Example: "  tidemark login alice --server https://backup1:7440 --ca tidemark-ca.pem\n  tidemark login --oidc --server https://backup1:7440",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := place()
			if err != nil {
				return err
			}
			if p.URL == "" {
				return usage(tidemark.Errorf(tidemark.Invalid, "which server?").WithHint("name it with --server https://HOST:PORT; at its own socket there is no need to log in"))
			}
			if atProvider == (len(args) == 1) {
				return usage(tidemark.Errorf(tidemark.Invalid, "who logs in?").WithHint("name a user, or give --oidc"))
			}
			p.Secret = ""
			at, err := client.NewRemote(p)
			if err != nil {
				return err
			}
			i, err := logIn(cmd.Context(), at, args)
			if err != nil {
				return err
			}
			if err := (credentials{Server: p.URL, Authority: string(p.Authority), Secret: i.Secret}).keep(); err != nil {
				return err
			}
			return show(map[string]any{"server": p.URL, "expires": i.Expires}, func() { fmt.Printf("logged in to %s until %s\n", p.URL, when(i.Expires)) })
		}}
	c.Flags().BoolVar(&atProvider, "oidc", false, "log in at the server's OpenID provider, in a browser")
	return c
}

// logIn begins a session: of a user with his password, or, without one, at the provider.
func logIn(ctx context.Context, at *client.Client, user []string) (i tidemark.Issued, err error) {
	if len(user) == 0 {
		l, err := at.BeginDeviceLogin(ctx)
		if err != nil {
			return i, err
		}
		fmt.Fprintf(os.Stderr, "open %s in a browser, and type in %s\n", l.Address, l.Code)
		return at.FinishDeviceLogin(ctx, l)
	}
	password, err := askPassword("password of "+user[0], false)
	if err != nil {
		return i, err
	}
	return at.Login(ctx, tidemark.Login{User: user[0], Password: password})
}

func logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End the session", Args: takes(0), Example: "  tidemark logout", RunE: func(cmd *cobra.Command, _ []string) error {
		k, err := readCredentials()
		if err != nil {
			return err
		}
		if k.Secret == "" {
			return tidemark.Errorf(tidemark.NotFound, "nobody is logged in")
		}
		at, err := client.NewRemote(client.Place{URL: k.Server, Authority: []byte(k.Authority), Secret: k.Secret})
		if err == nil {
			err = at.Logout(cmd.Context())
		}
		if tidemark.KindOf(err) == tidemark.Denied {
			err = nil // it was over
		}
		if err != nil {
			return err
		}
		if err := forgetCredentials(); err != nil {
			return err
		}
		return done("server", k.Server, "knows the session no more")
	}}
}

func whoamiCommand() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Who you are to the server, and what was granted to you", Args: takes(0), Example: "  tidemark whoami",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return tell(func(s access.Self) {
				if s.Method == access.BySocket {
					fmt.Println("the administrator at the server's socket: everything is allowed")
					return
				}
				fmt.Printf("%s, by %s", s.User, s.Method)
				if len(s.Groups) > 0 {
					fmt.Printf(", in %s", strings.Join(s.Groups, ", "))
				}
				fmt.Println()
				if s.Token != nil {
					printNarrowed(*s.Token)
				}
				printGrants(s.Grants)
			})(server().Self(cmd.Context()))
		}}
}

// printNarrowed says what a token leaves of the grants of its user.
func printNarrowed(t access.Token) {
	var only []string
	if len(t.Roles) > 0 {
		only = append(only, fmt.Sprintf("what %s may", joined(t.Roles, ", ")))
	}
	if len(t.Applications) > 0 {
		only = append(only, fmt.Sprintf("what belongs to %s", joined(t.Applications, ", ")))
	}
	if len(only) > 0 {
		fmt.Printf("of these grants the token %s allows only %s:\n", t.Name, strings.Join(only, ", and of that "))
	}
}

// joined is a list of names with a separator between them.
func joined[T ~string](list []T, sep string) string {
	names := make([]string, len(list))
	for i, n := range list {
		names[i] = string(n)
	}
	return strings.Join(names, sep)
}

// expiry is the flag of what is made and removed by itself.
func expiry(c *cobra.Command, into *string) {
	c.Flags().StringVar(into, "for", "", "how long it lives, such as 8h or 3d; then it is removed by itself (default it stays)")
}

func cloneExtend() *cobra.Command {
	var life string
	c := &cobra.Command{Use: "extend NAME", Short: "Say how long a clone lives, from now on", Args: takes(0, aName), ValidArgsFunction: cloneNames, Example: "  tidemark clone extend dev --for 8h",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseSeconds("for", life)
			if err != nil {
				return usage(err)
			}
			return tell(func(k tidemark.Clone) {
				if k.Expires == nil {
					fmt.Println(k.Name, "stays")
					return
				}
				fmt.Println(k.Name, "lives until", when(*k.Expires))
			})(server().ExtendClone(cmd.Context(), args[0], tidemark.Extension{Lifetime: n}))
		}}
	expiry(c, &life)
	return c
}

func cloneShare() *cobra.Command {
	return &cobra.Command{Use: "share NAME [user:NAME|group:NAME …]", Short: "Share a clone with users and groups, and nobody else any more",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(fmt.Errorf("usage: tidemark clone share NAME [user:NAME|group:NAME …]"))
			}
			return nil
		}, ValidArgsFunction: cloneNames,
		Example: "  tidemark clone share dev user:bob group:testers",
		RunE: func(cmd *cobra.Command, args []string) error {
			s := access.ShareSpec{With: []access.Subject{}}
			for _, a := range args[1:] {
				kind, name, _ := strings.Cut(a, ":")
				one := access.Subject{Kind: access.SubjectKind(kind), Name: name}
				if err := one.Check(); err != nil {
					return usage(tidemark.Errorf(tidemark.Invalid, "%q is no user or group: %w", a, err).WithHint("write user:NAME or group:NAME"))
				}
				s.With = append(s.With, one)
			}
			return tell(printShared)(server().ShareClone(cmd.Context(), args[0], s))
		}}
}

func printShared(s access.Shared) {
	if len(s.With) == 0 {
		fmt.Println(s.Name, "is shared with nobody")
		return
	}
	names := make([]string, len(s.With))
	for i, one := range s.With {
		names[i] = one.String()
	}
	fmt.Println(s.Name, "is shared with", strings.Join(names, ", "), "and nobody else")
	for _, n := range s.Notes {
		fmt.Println("note:", n)
	}
}

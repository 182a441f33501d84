package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
)

func hostCommand() *cobra.Command {
	return group(&cobra.Command{Use: "host", Short: "Hosts with an agent, which can be tapped and given points"}, hostAdd(), hostList(), hostSet(), hostRemove())
}

func hostAdd() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "add NAME", Short: "Let a host join: makes a token for its agent", Args: takes(0, aName),
		Long: `Let a host join. The token that is printed is a secret, and can be used once,
within a day: bring it to the host, in a file that only root can read, and run
the agent there with --token-file. To a host that has joined before this gives a
new identity; the old one is good until the token is used.`,
		Example: "  tidemark host add db1 --token-file db1.token",
		RunE: func(cmd *cobra.Command, args []string) error {
			if flags.json && file == "" {
				return usage(tidemark.Errorf(tidemark.Invalid, "a token is a secret, and no part of the JSON").WithHint("name a file for it with --token-file"))
			}
			var v tidemark.Invitation
			err := giveSecret(file, "the next token that is made for "+args[0]+" takes the place of this one", func() (secret string, err error) {
				v, err = server().AddHost(cmd.Context(), tidemark.HostSpec{Name: args[0]})
				return v.Token, err
			})
			if err != nil || file == "" {
				return err
			}
			facts := map[string]any{"host": v.Host, "server": v.Server, "expires": v.Expires, "token_file": file}
			return show(facts, func() {
				fmt.Printf("%s has the token, good until %s. On %s:\n  tidemark agent --server %s --token-file %s\n", file, when(v.Expires), v.Host, v.Server, file)
			})
		}}
	c.Flags().StringVar(&file, "token-file", "", "write the token to this new file, which only you can read, instead of printing it")
	return c
}

func hostList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List hosts", Args: takes(0), Example: "  tidemark host ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Hosts(cmd.Context()), func(list []tidemark.Host) {
			var rows [][]string
			for _, h := range list {
				joined := time.Time{}
				if h.Joined != nil {
					joined = *h.Joined
				}
				rows = append(rows, []string{h.Name, string(h.State), when(joined), tidemark.FormatRate(h.Limit), dash(strings.Join(h.Applications, ", ")), dash(strings.Join(h.Shown, ", "))})
			}
			table("HOST STATE JOINED LIMIT APPLICATIONS SHOWN", rows)
			for _, h := range list {
				if h.Problem != "" {
					fmt.Printf("%s: %s\n", h.Name, h.Problem)
				}
			}
		})
	}}
}

func hostSet() *cobra.Command {
	var limit string
	c := &cobra.Command{Use: "set NAME --limit RATE", Short: "Limit what goes over the network to and from a host", Args: takes(0, aName), ValidArgsFunction: hostNames,
		Long: `Limit what the server sends to a host, and what it takes from it, over all of
its connections together but for the calls of its agent: the changes of tapped
disks, restores in place, and the disks of mounts and clones. RATE is such as
20Mbit, for each of the two ways, or none. It holds at once.`,
		Example: "  tidemark host set db1 --limit 20Mbit\n  tidemark host set db1 --limit none",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := tidemark.ParseRate(limit)
			if err != nil {
				return usage(err)
			}
			r := tidemark.HostChange{Name: args[0], Limit: n}
			if err := server().ChangeHost(cmd.Context(), r); err != nil {
				return err
			}
			return show(r, func() { fmt.Println(r.Name, "has the limit", tidemark.FormatRate(n)) })
		}}
	c.Flags().StringVar(&limit, "limit", "", "a rate in bits per second, such as 20Mbit, or none")
	return c
}

func hostRemove() *cobra.Command {
	var r tidemark.HostRemoval
	c := &cobra.Command{Use: "rm NAME", Short: "Shut a host out", Args: takes(0, aName), ValidArgsFunction: hostNames,
		Long: `Shut a host out: its agent is not let in any more, whatever certificate it has.
With --force also if disks are tapped there: their taps are left to themselves,
and go on showing the disks. Their points stay until the applications are
unprotected. Mounts and clones there lose their disks; what is left of them goes
with unmount and clone rm.`,
		Example: "  tidemark host rm db1",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			if err := server().RemoveHost(cmd.Context(), r); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is shut out") })
		}}
	c.Flags().BoolVar(&r.Force, "force", false, "though something is tapped, mounted or cloned there")
	return c
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

func webhookCommand() *cobra.Command {
	return group(&cobra.Command{Use: "webhook", Short: "URLs that events are posted to",
		Long: `Webhooks are URLs that events are posted to as JSON, in order, each until it is
taken: also those that happened while the receiver, or the server, was away.`},
		webhookAdd(), webhookList(), webhookShow(), webhookSet(), webhookTest(), webhookRemove())
}

var webhookNames = named((*client.Client).Webhooks, func(w tidemark.Webhook) string { return w.Name })

// aPostURL is a URL that is posted to, or - for standard input.
var aPostURL = argument{func(s string) error {
	if s == "-" {
		return nil
	}
	return tidemark.CheckPostURL(s)
}}

// postURL reads the URL from standard input, if it is -: there it is not seen by who lists processes.
func postURL(s string) (string, error) {
	if s != "-" {
		return s, usage(tidemark.CheckPostURL(s))
	}
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", usage(tidemark.Errorf(tidemark.Invalid, "standard input has no URL: %v", err))
	}
	return line, usage(tidemark.CheckPostURL(line))
}

// webhookFlags are what add and set have in common.
func webhookFlags(c *cobra.Command, s *tidemark.WebhookSpec) {
	c.Flags().StringVar(&s.Level, "level", "", "the least grave events that are posted: info, warning or error (default info)")
	c.Flags().StringSliceVar(&s.Applications, "app", nil, "only events of applications with this `NAME` or pattern; again for more")
	c.Flags().StringVar(&s.Secret, "secret", "", "sign with the key in the `FILE` of the server's directory secrets")
	c.Flags().BoolVar(&s.Off, "off", false, "post nothing")
}

// checkWebhookFlags finds what is wrong before anything is asked of the server.
func checkWebhookFlags(s tidemark.WebhookSpec) error {
	if s.Level != "" {
		if err := tidemark.CheckEventLevel(s.Level); err != nil {
			return usage(err)
		}
	}
	for _, p := range s.Applications {
		if _, err := access.ParsePattern(p); err != nil {
			return usage(err)
		}
	}
	if s.Secret == "" {
		return nil
	}
	return usage(tidemark.CheckName(s.Secret))
}

func webhookAdd() *cobra.Command {
	var spec tidemark.WebhookSpec
	c := &cobra.Command{Use: "add NAME URL", Short: "Post events to a URL from now on", Args: takes(0, aName, aPostURL),
		Long: `Post events to a URL, those that happen from now on. With - the URL is read from
standard input: its path may be a secret, which a command line is no place for.
With --secret each message is signed, as docs/webhooks.md says.`,
		Example: "  tidemark webhook add ops https://chat.example.com/hook --level warning\n  cat url | tidemark webhook add orders - --app 'orders*' --secret orders-hook",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkWebhookFlags(spec); err != nil {
				return err
			}
			spec.Name = args[0]
			if spec.URL, err = postURL(args[1]); err != nil {
				return err
			}
			return tell(func(w tidemark.Webhook) {
				fmt.Printf("%s is a webhook: `tidemark webhook test %s` tries it\n", w.Name, w.Name)
			})(server().AddWebhook(cmd.Context(), spec))
		}}
	webhookFlags(c, &spec)
	return c
}

func webhookList() *cobra.Command {
	return &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List webhooks, how far they are, and why they fail", Args: takes(0), Example: "  tidemark webhook ls\n  tidemark webhook ls --json | jq '.[] | select(.state == \"failing\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printList(server().Webhooks(cmd.Context()), printWebhooks)
		}}
}

func printWebhooks(list []tidemark.Webhook) {
	var rows [][]string
	for _, w := range list {
		last, detail := "-", w.URL
		if w.Last != nil {
			last = when(*w.Last)
		}
		if w.FailingSince != nil {
			detail = "since " + when(*w.FailingSince) + ": " + w.Error
		}
		rows = append(rows, []string{w.Name, string(w.State), w.Level, strconv.FormatInt(w.Pending+w.Missed, 10), last, detail})
	}
	table("WEBHOOK STATE LEVEL WAITING TAKEN DETAIL", rows)
}

func webhookShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Describe a webhook", Args: takes(0, aName), ValidArgsFunction: webhookNames, Example: "  tidemark webhook show ops",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(printWebhook)(server().Webhook(cmd.Context(), args[0]))
		}}
}

func printWebhook(w tidemark.Webhook) {
	fmt.Printf("webhook %s: %s\n", w.Name, w.State)
	of := "all applications and the server"
	if len(w.Applications) > 0 {
		of = strings.Join(w.Applications, ", ")
	}
	fmt.Printf("posts events of %s, from %s on, to %s\n", of, w.Level, w.URL)
	if w.Secret != "" {
		fmt.Println("signed with the secret", w.Secret)
	}
	if w.Oldest != nil {
		fmt.Printf("%d events wait, the oldest of %s\n", w.Pending, when(*w.Oldest))
	}
	if w.Missed > 0 {
		fmt.Printf("%d events were forgotten before they were taken\n", w.Missed)
	}
	if w.Last != nil {
		fmt.Printf("%d messages were taken, the last at %s\n", w.Delivered, when(*w.Last))
	}
	if w.Failed > 0 {
		fmt.Printf("%d attempts failed\n", w.Failed)
	}
	if w.FailingSince != nil {
		fmt.Printf("fails since %s: %s\n", when(*w.FailingSince), w.Error)
	}
}

func webhookSet() *cobra.Command {
	var spec tidemark.WebhookSpec
	var on bool
	c := &cobra.Command{Use: "set NAME", Short: "Change a webhook, or switch it off and on", Args: takes(0, aName), ValidArgsFunction: webhookNames,
		Long: `Change a webhook. What is not named stays; --app '' stands for all events, and
--secret '' for no signature. What waits is posted to a new URL. What happens
while a webhook is off is not posted later, nor is what waited: a receiver that
is to be spared that is switched off and on.`,
		Example: "  tidemark webhook set ops --level error\n  tidemark webhook set ops --off\n  tidemark webhook set ops --on --url https://new.example.com/hook",
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := webhookChange(cmd, spec, on)
			if err != nil {
				return err
			}
			return tell(printWebhook)(server().ChangeWebhook(cmd.Context(), args[0], change))
		}}
	webhookFlags(c, &spec)
	c.Flags().StringVar(&spec.URL, "url", "", "another `URL`; - for standard input")
	c.Flags().BoolVar(&on, "on", false, "post events again, those that happen from now on")
	return c
}

// webhookChange is what the flags of a command say.
func webhookChange(cmd *cobra.Command, s tidemark.WebhookSpec, on bool) (change tidemark.WebhookChange, err error) {
	if err := checkWebhookFlags(s); err != nil {
		return change, err
	}
	set := cmd.Flags().Changed
	if on && s.Off {
		return change, usage(errors.New("--on and --off are not one wish"))
	}
	if set("url") {
		if s.URL, err = postURL(s.URL); err != nil {
			return change, err
		}
		change.URL = &s.URL
	}
	if set("level") {
		change.Level = &s.Level
	}
	if set("app") {
		change.Applications = append([]string{}, s.Applications...)
	}
	if set("secret") {
		change.Secret = &s.Secret
	}
	if on || s.Off {
		change.Off = &s.Off
	}
	if !set("url") && !set("level") && !set("app") && !set("secret") && change.Off == nil {
		return change, usage(errors.New("say what is to be other: --url, --level, --app, --secret, --on or --off"))
	}
	return change, nil
}

func webhookTest() *cobra.Command {
	return &cobra.Command{Use: "test NAME", Short: "Post a message now, and say what it was answered", Args: takes(0, aName), ValidArgsFunction: webhookNames, Example: "  tidemark webhook test ops",
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := server().TestWebhook(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if t.Taken || flags.json {
				err = show(t, func() {
					fmt.Println(strings.TrimSuffix(fmt.Sprintf("%s took it in %s, with status %d: %s", args[0], seconds(t.Seconds), t.Status, t.Answer), ": "))
				})
			}
			if err == nil && !t.Taken {
				err = tidemark.Errorf(tidemark.Unavailable, "%s", t.Error)
				if t.Answer != "" {
					err = tidemark.Errorf(tidemark.Unavailable, "%s: %.200s", t.Error, t.Answer)
				}
			}
			return err
		}}
}

func webhookRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Remove a webhook; what waits is not posted", Args: takes(0, aName), ValidArgsFunction: webhookNames, Example: "  tidemark webhook rm ops",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveWebhook(cmd.Context(), args[0]); err != nil {
				return err
			}
			return done("name", args[0], "is removed")
		}}
}

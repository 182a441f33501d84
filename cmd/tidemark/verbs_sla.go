package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/client"
	"tidemark/internal/strictyaml"
	"tidemark/policy"
)

// maxDocuments bounds what is read of a file of documents, in bytes.
const maxDocuments = 4 << 20

func applyCommand() *cobra.Command {
	var files []string
	var dry, wait bool
	c := &cobra.Command{Use: "apply -f FILE", Short: "Make the server have what the files of a site say", Args: takes(0),
		Long: `Make the server have what YAML documents say: SLA templates, profiles,
applications, hosts, groups and workflows, in any order. A document is the whole
of the one thing that it names: what is not there is made, what differs is
changed, and what it leaves out, as the sla of an application, is taken away.
What no document names is left alone. All of it is looked at before anything is
changed. Applications that were not protected are, by jobs, which --wait waits
for. A workflow that differs, if only in a comment, becomes a new version.`,
		Example: "  tidemark apply -f site.yaml --dry-run\n  tidemark apply -f templates.yaml -f applications.yaml\n  cat site.yaml | tidemark apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			documents, err := readDocuments(files)
			if err != nil {
				return err
			}
			applied, err := server().Apply(cmd.Context(), tidemark.ApplySpec{Documents: documents, DryRun: dry})
			if err := tell(printApplied)(applied, err); err != nil || !wait {
				return err
			}
			return awaitAll(cmd, slices.Concat(applied.UnderWay, applied.Jobs))
		}}
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "`FILE` of documents; - for standard input")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be changed")
	c.Flags().BoolVar(&wait, "wait", false, "wait until what is new is protected")
	return c
}

// awaitAll waits for all of the jobs, also when one fails.
func awaitAll(cmd *cobra.Command, jobs []tidemark.Job) (err error) {
	for _, j := range jobs {
		err = errors.Join(err, awaitJob(cmd, j.ID))
	}
	return err
}

// readDocuments reads files into one stream of documents.
func readDocuments(files []string) (string, error) {
	if len(files) == 0 {
		return "", usage(errors.New("name a file: -f site.yaml"))
	}
	var all []string
	for _, name := range files {
		data, err := readDocument(name)
		if err != nil {
			return "", usage(err)
		}
		all = append(all, string(data))
	}
	return strictyaml.Join(all...), nil
}

func readDocument(name string) ([]byte, error) {
	r := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, tidemark.Errorf(tidemark.Invalid, "the file cannot be read: %w", err).WithHint("name a file that there is, or - for standard input")
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxDocuments+1))
	if err == nil && len(data) > maxDocuments {
		err = fmt.Errorf("%s has more than %s", name, size(maxDocuments))
	}
	return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), err
}

func printApplied(a policy.Applied) {
	changed := 0
	for _, x := range a.Changes {
		if x.Action != policy.ActionLeave {
			changed++
			fmt.Println(x)
		}
	}
	for _, f := range a.Forgotten {
		fmt.Println(f)
	}
	switch {
	case changed == 0 && len(a.UnderWay) > 0:
		fmt.Println("all is as it is wanted, or is being made so")
	case changed == 0:
		fmt.Println("all is as it is wanted")
	case a.DryRun:
		fmt.Println("nothing was changed: this was a dry run")
	}
	for _, n := range a.Notes {
		fmt.Println("note:", n)
	}
	for _, j := range a.UnderWay {
		fmt.Printf("job %d is protecting %s already: `tidemark job show %d`\n", j.ID, j.Application, j.ID)
	}
	for _, j := range a.Jobs {
		fmt.Printf("job %d protects %s: `tidemark job show %d`\n", j.ID, j.Application, j.ID)
	}
}

func slaCommand() *cobra.Command {
	c := &cobra.Command{Use: "sla", Short: "What is promised to applications, and whether it is kept", Args: takes(0),
		Long: `Show for each application which SLA template it has, whether what that promises
is kept, and why if it is not. RPO is how much may be lost, RTO how long a
recovery may take: promised, and measured.`,
		Example: "  tidemark sla\n  tidemark sla --json\n  tidemark sla set orders gold\n  tidemark sla templates --yaml >templates.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printList(server().Compliance(cmd.Context()), printCompliance)
		}}
	c.AddCommand(slaSet(), slaTemplates(), slaRemove())
	return c
}

func printCompliance(list []policy.Compliance) {
	var rows [][]string
	for _, x := range list {
		reasons := append([]string{}, x.Reasons...)
		for _, o := range x.Overdue {
			reasons = append(reasons, fmt.Sprintf("%s is due since %s: %s", o.Policy, when(o.Since), o.Why))
		}
		rows = append(rows, []string{x.Application, templateOf(x), string(x.State), objective(x.RPO), objective(x.RTO), dash(strings.Join(reasons, "; "))})
	}
	table("APPLICATION TEMPLATE STATE RPO RTO WHY", rows)
}

// templateOf is the template of an application, with the group that it has it by.
func templateOf(x policy.Compliance) string {
	if x.Group != "" {
		return x.Template + " (group " + x.Group + ")"
	}
	return dash(x.Template)
}

// objective is what was measured of what was promised.
func objective(o policy.Objective) string {
	measured, promised := "-", "-"
	if o.Measured != nil {
		measured = time.Duration(*o.Measured).Round(time.Second).String()
	}
	if o.Promised != 0 {
		promised = o.Promised.String()
	}
	return measured + "/" + promised
}

func slaSet() *cobra.Command {
	return &cobra.Command{Use: "set APP|GROUP TEMPLATE|none", Short: "Give an application, clone or group a template, or none", Args: takes(0, aName, aName), ValidArgsFunction: appNames,
		Long: `Give an application, clone or group a template, or none. That of a group is for
all of its members, also those that join later, and for none that has left; a
template of a member's own comes before it.`,
		Example: "  tidemark sla set orders gold\n  tidemark sla set bank gold\n  tidemark sla set scratch none",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := tidemark.SLASpec{Application: args[0], Template: args[1]}
			if spec.Template == "none" {
				spec.Template = ""
			}
			ofGroup := tidemark.GroupSLASpec{Group: spec.Application, Template: spec.Template}
			if _, err := server().Group(cmd.Context(), ofGroup.Group); err == nil { // no application has the name of a group
				return showGroupSet(ofGroup, server().SetGroupSLA(cmd.Context(), ofGroup))
			}
			err := server().SetSLA(cmd.Context(), spec)
			if tidemark.KindOf(err) == tidemark.Denied && server().SetGroupSLA(cmd.Context(), ofGroup) == nil {
				return showGroupSet(ofGroup, nil) // of which he sees no more than its members
			}
			if err != nil {
				return err
			}
			return show(spec, func() { printSet(spec.Application, spec.Template) })
		}}
}

func showGroupSet(spec tidemark.GroupSLASpec, err error) error {
	if err != nil {
		return err
	}
	return show(spec, func() { printSet("group "+spec.Group, spec.Template) })
}

func printSet(who, template string) {
	if template == "" {
		fmt.Println("nothing is promised to", who, "any more")
		return
	}
	fmt.Println(who, "has the template", template)
}

func slaTemplates() *cobra.Command {
	var asYAML bool
	c := &cobra.Command{Use: "templates", Short: "List SLA templates", Args: takes(0), Example: "  tidemark sla templates\n  tidemark sla templates --yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := client.Collect(server().Templates(cmd.Context()))
			if err != nil {
				return err
			}
			if asYAML {
				return printDocuments(policy.Set{Templates: list})
			}
			return show(list, func() { printTemplates(list) })
		}}
	c.Flags().BoolVar(&asYAML, "yaml", false, "as documents, which `tidemark apply` takes")
	return c
}

// printDocuments prints what there is as documents, which apply takes.
func printDocuments(s policy.Set) error {
	data, err := policy.Marshal(s)
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	return err
}

func printTemplates(list []policy.Template) {
	var rows [][]string
	for _, t := range list {
		rpo, rto := "-", "-"
		if t.RPO != 0 {
			rpo = t.RPO.String()
		}
		if t.RTO != 0 {
			rto = t.RTO.String()
		}
		rows = append(rows, []string{t.Name, rpo, rto, dash(t.Description)})
	}
	table("TEMPLATE RPO RTO DESCRIPTION", rows)
}

func slaRemove() *cobra.Command {
	return &cobra.Command{Use: "rm TEMPLATE", Short: "Forget a template that no application and no group has", Args: takes(0, aName), Example: "  tidemark sla rm bronze",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveTemplate(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is forgotten") })
		}}
}

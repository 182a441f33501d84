package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/client"
	"tidemark/policy"
)

func profileCommand() *cobra.Command {
	var asYAML bool
	c := &cobra.Command{Use: "profile", Short: "Where copies go, and how many jobs may run for it", Args: takes(0),
		Long: `List profiles: each says where copies of its applications go, and how many jobs
of theirs run at a time. They are made and changed by ` + "`tidemark apply`" + `.`,
		Example: "  tidemark profile\n  tidemark profile set orders berlin\n  tidemark profile --yaml >profiles.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := client.Collect(server().Profiles(cmd.Context()))
			if err != nil {
				return err
			}
			if asYAML {
				return printDocuments(policy.Set{Profiles: list})
			}
			var all []policy.Compliance
			if !flags.json { // who has which is shown to people, and has the server look at all applications
				if all, err = client.Collect(server().Compliance(cmd.Context())); err != nil {
					return err
				}
			}
			return show(list, func() { printProfiles(list, all) })
		}}
	c.Flags().BoolVar(&asYAML, "yaml", false, "as documents, which `tidemark apply` takes")
	c.AddCommand(profileSet(), profileRemove())
	return c
}

// printProfiles prints profiles, each with those of all applications that have it.
func printProfiles(list []policy.Profile, all []policy.Compliance) {
	var rows [][]string
	for _, p := range list {
		jobs, of := "-", []string{}
		if p.Jobs > 0 {
			jobs = strconv.Itoa(p.Jobs)
		}
		for _, x := range all {
			if x.Profile == p.Name {
				of = append(of, x.Application)
			}
		}
		rows = append(rows, []string{p.Name, jobs, dash(p.Replicate), dash(p.Vault), dash(strings.Join(of, ", ")), dash(p.Description)})
	}
	table("PROFILE JOBS REPLICATE VAULT APPLICATIONS DESCRIPTION", rows)
}

func profileSet() *cobra.Command {
	return &cobra.Command{Use: "set APP PROFILE|none", Short: "Give an application or clone a profile, or none", Args: takes(0, aName, aName), ValidArgsFunction: appNames,
		Example: "  tidemark profile set orders berlin\n  tidemark profile set scratch none",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := tidemark.ProfileSpec{Application: args[0], Profile: args[1]}
			if spec.Profile == "none" {
				spec.Profile = ""
			}
			if err := server().SetProfile(cmd.Context(), spec); err != nil {
				return err
			}
			return show(spec, func() { fmt.Println(spec.Application, "has", profileWords(spec.Profile)) })
		}}
}

func profileWords(profile string) string {
	if profile == "" {
		return "no profile any more"
	}
	return "the profile " + profile
}

func profileRemove() *cobra.Command {
	return &cobra.Command{Use: "rm PROFILE", Short: "Forget a profile that no application has", Args: takes(0, aName), Example: "  tidemark profile rm berlin",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveProfile(cmd.Context(), args[0]); err != nil {
				return err
			}
			return show(map[string]string{"name": args[0]}, func() { fmt.Println(args[0], "is forgotten") })
		}}
}

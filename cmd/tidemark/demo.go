package main

import (
	"github.com/spf13/cobra"
)

func demoCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{Use: "demo", Short: "The main job, end to end, on a PostgreSQL that it starts itself", Args: takes(0),
		Example: "  tidemark demo\n  tidemark demo --keep",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), keep) }}
	c.Flags().BoolVar(&keep, "keep", false, "leave it running at the end, and say how to look around")
	return c
}

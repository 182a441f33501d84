package main

import (
	"github.com/spf13/cobra"

	"tidemark/agent/proof"
)

// sandboxCommand is the first process of the sandbox of a recovery proof; the agent starts it.
func sandboxCommand() *cobra.Command {
	return &cobra.Command{Use: "sandbox", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		return proof.Inside(cmd.Context())
	}}
}

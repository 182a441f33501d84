package main

import (
	"github.com/spf13/cobra"

	"tidemark/agent"
)

// agentCommand is the process that works on mounted disks; the server starts it.
func agentCommand() *cobra.Command {
	return &cobra.Command{Use: "agent", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		return agent.Run(cmd.Context())
	}}
}

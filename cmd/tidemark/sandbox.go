package main

import (
	"github.com/spf13/cobra"

	"tidemark/agent/proof"
	"tidemark/app/postgres"
)

// sandboxCommand is the first process of the sandbox of a recovery proof; the agent starts it.
func sandboxCommand() *cobra.Command {
	return &cobra.Command{Use: "sandbox", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		return proof.Inside(cmd.Context())
	}}
}

// roomCommand is the first process of the room of a clone's database, which becomes its server; the agent starts it.
func roomCommand() *cobra.Command {
	return &cobra.Command{Use: "room", Hidden: true, Args: takes(0), RunE: func(*cobra.Command, []string) error {
		return postgres.EnterRoom()
	}}
}

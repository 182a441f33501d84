package main

import (
	"os"

	"github.com/spf13/cobra"

	"tidemark/internal/guard"
)

// guardCommand is the process that lets virtual machines go on when the server stands still; the server starts it.
func guardCommand() *cobra.Command {
	return &cobra.Command{Use: "guard", Hidden: true, Args: takes(0), RunE: func(*cobra.Command, []string) error {
		return guard.Run(os.Stdin, guard.Limit)
	}}
}

package main

import (
	"github.com/spf13/cobra"

	"tidemark/agent/taps"
)

// tapCommand is the process of a tap; the server starts it.
func tapCommand() *cobra.Command {
	return &cobra.Command{Use: "tap", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		return taps.Run(cmd.Context())
	}}
}

package main

import (
	"errors"

	"github.com/spf13/cobra"

	"tidemark/agent"
	"tidemark/mount"
)

// attachCommand is the process that keeps one disk attached; the server starts it.
func attachCommand() *cobra.Command {
	return &cobra.Command{Use: "attach", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		err := mount.RunAttacher(cmd.Context(), agent.DialDisk)
		if errors.Is(err, mount.ErrConfig) {
			return usage(err)
		}
		return err
	}}
}

package control

import (
	"context"
	"fmt"
	"os"
	"testing"

	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/mount"
)

// TestMain makes this test binary what a server starts, too: its agent, and attachers.
func TestMain(m *testing.M) {
	processes := map[string]func(context.Context) error{"agent": agent.Run,
		"attach": func(ctx context.Context) error { return mount.RunAttacher(ctx, agent.DialDisk) },
		"room":   func(context.Context) error { return postgres.EnterRoom() }}
	if len(os.Args) == 2 && processes[os.Args[1]] != nil {
		if err := processes[os.Args[1]](context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

package main
import "context"
func runDemo(ctx context.Context, keep bool) error { return nil }

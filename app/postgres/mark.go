package postgres

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"tidemark"
)

// Mark writes a restore point of a name into the log of a running cluster and waits until the log is
// durable up to it. What the cluster's disks hold from then on recovers to it or beyond. Nobody's
// writes are held. It returns where it is in the log.
func Mark(ctx context.Context, conn *pgx.Conn, name string) (LSN, error) {
	var text string
	// pg_create_restore_point does not wait for the log. A commit does, of a transaction that has written something.
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local"); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT pg_create_restore_point($1)::text", name).Scan(&text); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, 'tidemark', $1)", name)
		return err
	})
	if err != nil {
		return 0, tidemark.Errorf(tidemark.Unavailable, "no restore point in the log: %w", err).
			WithHint("the role needs EXECUTE on pg_create_restore_point")
	}
	return ParseLSN(text)
}

// Places returns the directories, without links, that a cluster of this host keeps its files in: its data
// directory, its log, its tablespaces.
func Places(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	var data string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&data); err != nil {
		return nil, fmt.Errorf("where the cluster's files are: %w", err)
	}
	rows, err := conn.Query(ctx, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''")
	if err != nil {
		return nil, err
	}
	places, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("where the tablespaces are: %w", err)
	}
	places = append(places, data, filepath.Join(data, "pg_wal"))
	for i, dir := range places {
		if places[i], err = filepath.EvalSymlinks(dir); err != nil {
			return nil, fmt.Errorf("a directory of the cluster: %w", err)
		}
	}
	return places, nil
}

// Package postgres provides both halves of what Tidemark knows of PostgreSQL
// (12 and newer): how a running cluster is captured into a directory with the
// log that belongs to it, and how a copy of that directory becomes a running
// database that can never touch production.
//
// # Capture
//
// [Capture] uses the server's backup API. Between pg_backup_start and
// pg_backup_stop, held on one connection, it brings staging/data up to date in
// place: files that are proven unchanged are not read, and of the others only
// differing 4 KiB blocks are written. Pages may be torn or of different
// moments; the log between the two calls makes them whole, and is put into
// staging/data/pg_wal, so that a clone of this state needs nothing else. See
// DESIGN.md beside this file for the invariant and the proof rule.
//
// # The log
//
// [Receiver] keeps pg_receivewal running into a directory through a replication
// slot. The slot makes production keep its log while we are away, so it is
// bounded: by the server itself (max_slot_wal_keep_size, see [Check]) and by
// the Receiver. What is lost so is recorded as a [Gap], never passed over. The cluster may be
// on another host, where [Forward] connects to it: see [Source].Forwarded.
//
// # Recovery
//
// [Recover] replaces the configuration of a copy by its own, starts the server
// on a private socket, and returns when it answers. It serves three sorts of
// copies alike: one of a capture (recovered to consistency, or further to a time
// or position from the log), one of a running clone (plain crash recovery), and one
// of a clone that was still recovering.
//
// # Who we are
//
// The server authenticates local users by the kernel (peer). When this process
// is root, connections and tools act as the owner of the server's socket, so a
// stock installation works without configuration. Passwords come from PGPASSWORD or a
// password file only, and appear in no argument list, log or result.
package postgres

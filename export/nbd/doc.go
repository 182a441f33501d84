// Package nbd shows disks to anybody who speaks the NBD protocol: the Linux
// kernel, QEMU, libnbd, nbdkit, fio, and Tidemark's own attach process.
//
// A [Server] serves the [Export]s that an [Exports] knows by name; [Table] is
// the one that most callers want. Exports come and go while it serves. [Listen]
// opens a socket, [URI] says how to reach an export through it:
//
//	table := nbd.NewTable()
//	table.Add(&nbd.Export{Name: "orders", Device: disk})
//	l, err := nbd.Listen("unix:/run/tidemark/orders.sock")
//	go nbd.NewServer(table, nbd.Options{}).Serve(l)
//	fmt.Println(nbd.URI("unix:/run/tidemark/orders.sock", "orders", false))
//
// # What is promised
//
// A write is acknowledged only after the device took all of it, a flush or a
// write with FUA only after a Flush of the device that began after the request
// was read. So a flush covers every write whose reply was sent, on any
// connection, before the client sent the flush. An error of the device reaches
// the client as an errno, never as silence and never as success.
//
// # Where to start reading
//
// handshake.go is the haggling, transmission.go the loop that serves requests,
// requests.go what each request does, sink.go how replies are built. DESIGN.md
// says why it is shaped so, and docs/nbd.md what is spoken.
package nbd

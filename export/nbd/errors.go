package nbd

import "errors"

// Errors of exports.
var (
	// ErrUnknownExport: there is no export of that name. An [Exports] answers
	// Open with it; the client is told so.
	ErrUnknownExport = errors.New("no such export")
	// ErrExportExists: an export of that name is already there.
	ErrExportExists = errors.New("export exists")
	// ErrBadExport: an export has no device, or its name or description is
	// longer than 4096 bytes, is not UTF-8, or holds a NUL.
	ErrBadExport = errors.New("bad export")
)

// Errors of listening.
var (
	// ErrBadAddress: an address is neither unix:/PATH nor tcp:HOST:PORT.
	ErrBadAddress = errors.New("bad address, want unix:/PATH or tcp:HOST:PORT")
	// ErrAddressInUse: somebody answers on that unix socket.
	ErrAddressInUse = errors.New("address in use")
)

// Errors of serving.
var (
	// ErrServerClosed: Serve returned because of Shutdown or Close.
	ErrServerClosed = errors.New("server closed")

	// errProtocol: the client broke the protocol in a way that leaves no common
	// ground, and is hung up on.
	errProtocol = errors.New("protocol violation")
	// errAborted: the client ended the handshake politely.
	errAborted = errors.New("client aborted")
)

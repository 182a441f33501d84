package nbd

import (
	"encoding/binary"
	"errors"
	"syscall"

	"tidemark/block"
)

// be is the byte order of everything on the wire.
var be = binary.BigEndian

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT", of the greeting and of each option
	magicReply      = 0x0003e889045565a9 // of each reply to an option
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Flags of the greeting and of the client's answer to it.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options; those with the top bit set are errors.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrTLSReqd  = 1<<31 + 5
	repErrUnknown  = 1<<31 + 6
	repErrShutdown = 1<<31 + 7
	repErrTooBig   = 1<<31 + 9
)

// Kinds of information in a reply to INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags: what an export can do.
const (
	canFlags       = 1 << 0
	canReadOnly    = 1 << 1
	canFlush       = 1 << 2
	canFUA         = 1 << 3
	canTrim        = 1 << 5
	canWriteZeroes = 1 << 6
	canDF          = 1 << 7
	canMultiConn   = 1 << 8
	canCache       = 1 << 10
	canFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Flags of commands.
const (
	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagDF       = 1 << 2
	flagReqOne   = 1 << 3
	flagFastZero = 1 << 4
)

// Chunks of a structured reply.
const (
	chunkDone = 1 << 0 // flag: the last chunk of its reply

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
)

// The one metadata context we know, the number we give it, and its states.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = 1

	stateHole = 1 << 0
	stateZero = 1 << 1
)

// Errors on the wire. Their numbers are Linux's by definition of the protocol,
// whatever the system we run on.
const (
	errPerm    = 1
	errIO      = 5
	errNoMem   = 12
	errInval   = 22
	errNoSpace = 28
	errNotSup  = 95
)

// Limits that the protocol names or that every client keeps to.
const (
	// maxName is the longest export name and description in bytes, by the protocol.
	maxName = 4096
	// maxPayload is the longest read or write in bytes that we serve and
	// advertise: 32 MiB is what the protocol asks clients to assume.
	maxPayload = 32 << 20
	// maxDrain is the longest payload of a refused write that is read and
	// thrown away so that the connection can go on; beyond it we hang up.
	maxDrain = 2 * maxPayload
	// maxOption is the longest option in bytes that is looked at, and
	// maxOptionDrain the longest that is skipped with a polite refusal.
	maxOption      = 64 << 10
	maxOptionDrain = 1 << 20
	// maxQueries is how many metadata queries one option may hold.
	maxQueries = 64
	// maxOptions is how many options one client may send.
	maxOptions = 10000
)

const requestSize = 28

// request is one command as it came off the wire.
type request struct {
	flags, typ uint16
	cookie     uint64
	off        uint64
	length     uint32
	payload    *[]byte // of a long write, of getLarge
}

// parseRequest reads a request out of requestSize bytes; false if the magic is wrong.
func parseRequest(p []byte) (request, bool) {
	_ = p[requestSize-1]
	return request{
		flags:  be.Uint16(p[4:]),
		typ:    be.Uint16(p[6:]),
		cookie: be.Uint64(p[8:]),
		off:    be.Uint64(p[16:]),
		length: be.Uint32(p[24:]),
	}, be.Uint32(p) == magicRequest
}

// errno is what the client is told of an error of a device.
func errno(err error) uint32 {
	switch {
	case errors.Is(err, block.ErrReadOnly), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EPERM):
		return errPerm
	case errors.Is(err, block.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errNoSpace
	case errors.Is(err, block.ErrBounds):
		return errInval
	case errors.Is(err, syscall.ENOMEM):
		return errNoMem
	}
	return errIO
}

package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// handshake is what a client and we have agreed on so far.
type handshake struct {
	r          *bufio.Reader
	noZeroes   bool
	secure     bool // TLS is on
	structured bool
	allocation bool   // base:allocation was selected …
	contextOf  string // … for the export of this name
}

// negotiate greets the client and haggles until it chose an export, which is
// then set in c. It returns bytes that the client sent beyond.
func (c *conn) negotiate() (buffered []byte, err error) {
	h := &c.hs
	h.r = bufio.NewReaderSize(c.nc, 4096)
	if err := c.greet(); err != nil {
		return nil, err
	}
	for range maxOptions {
		opt, n, err := c.readOption()
		if err != nil {
			return nil, err
		}
		chosen, err := c.option(opt, n)
		if err != nil {
			return nil, err
		}
		if chosen {
			c.structured = h.structured
			c.allocation = h.allocation && h.contextOf == c.exp.Name
			return h.r.Peek(h.r.Buffered())
		}
	}
	return nil, fmt.Errorf("%w: more than %d options", errProtocol, maxOptions)
}

func (c *conn) greet() error {
	var p [18]byte
	be.PutUint64(p[:], magicServer)
	be.PutUint64(p[8:], magicOption)
	be.PutUint16(p[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(p[:]); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	var q [4]byte
	if _, err := io.ReadFull(c.hs.r, q[:]); err != nil {
		return fmt.Errorf("read client flags: %w", err)
	}
	flags := be.Uint32(q[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", errProtocol, flags)
	}
	c.hs.noZeroes = flags&flagNoZeroes != 0
	return nil
}

// readOption reads the header of an option: its number and how many bytes follow.
func (c *conn) readOption() (opt, n uint32, err error) {
	var p [16]byte
	if _, err := io.ReadFull(c.hs.r, p[:]); err != nil {
		return 0, 0, fmt.Errorf("read option: %w", err)
	}
	if be.Uint64(p[:]) != magicOption {
		return 0, 0, fmt.Errorf("%w: bad magic of an option", errProtocol)
	}
	return be.Uint32(p[8:]), be.Uint32(p[12:]), nil
}

// option reads the n bytes of an option and answers it; chosen says that the
// client chose an export and haggling is over.
func (c *conn) option(opt, n uint32) (chosen bool, err error) {
	if opt == optExportName && n > maxName || n > maxOptionDrain {
		return false, fmt.Errorf("%w: option %d of %d bytes", errProtocol, opt, n)
	}
	if n > maxOption {
		if _, err := c.hs.r.Discard(int(n)); err != nil {
			return false, fmt.Errorf("read option: %w", err)
		}
		return false, c.reply(opt, repErrTooBig, "option is too long")
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(c.hs.r, data); err != nil {
		return false, fmt.Errorf("read option: %w", err)
	}
	if c.srv.opt.RequireTLS && !c.hs.secure {
		switch opt {
		case optExportName:
			return false, fmt.Errorf("%w: export asked for without TLS", errProtocol)
		case optAbort, optStartTLS:
		default:
			return false, c.reply(opt, repErrTLSReqd, "this server requires TLS")
		}
	}
	switch opt {
	case optExportName:
		return true, c.exportName(data)
	case optAbort:
		return false, errors.Join(errAborted, c.reply(opt, repAck, ""))
	case optList:
		return false, c.list(data)
	case optStartTLS:
		return false, c.startTLS(data)
	case optInfo, optGo:
		return c.info(opt, data)
	case optStructuredReply:
		if len(data) > 0 {
			return false, c.reply(opt, repErrInvalid, "option has data")
		}
		c.hs.structured = true
		return false, c.reply(opt, repAck, "")
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	}
	return false, c.reply(opt, repErrUnsup, "unknown option")
}

// reply answers an option.
func (c *conn) reply(opt, typ uint32, data string) error {
	_, err := c.nc.Write(appendReply(nil, opt, typ, data))
	if err != nil {
		return fmt.Errorf("answer option %d: %w", opt, err)
	}
	return nil
}

func appendReply(p []byte, opt, typ uint32, data string) []byte {
	p = be.AppendUint64(p, magicReply)
	p = be.AppendUint32(p, opt)
	p = be.AppendUint32(p, typ)
	p = be.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// exportName answers the oldest way to choose an export, which knows no errors
// but hanging up.
func (c *conn) exportName(name []byte) error {
	if err := c.choose(string(name)); err != nil {
		return fmt.Errorf("open export: %w", err)
	}
	p := be.AppendUint64(nil, uint64(c.size))
	p = be.AppendUint16(p, c.transmissionFlags())
	if !c.hs.noZeroes {
		p = append(p, make([]byte, 124)...)
	}
	if _, err := c.nc.Write(p); err != nil {
		return fmt.Errorf("answer export name: %w", err)
	}
	return nil
}

// transmissionFlags says what the export can do.
func (c *conn) transmissionFlags() uint16 {
	f := uint16(canFlags | canFlush | canFUA | canMultiConn)
	if c.wdev == nil {
		f |= canReadOnly
	} else {
		f |= canTrim | canWriteZeroes | canFastZero
	}
	if c.hs.structured {
		f |= canDF
	}
	if c.prefetch != nil {
		f |= canCache
	}
	return f
}

func (c *conn) list(data []byte) error {
	if len(data) > 0 {
		return c.reply(optList, repErrInvalid, "option has data")
	}
	var p []byte
	for _, e := range c.srv.exports.List() {
		d := string(be.AppendUint32(nil, uint32(len(e.Name)))) + e.Name + e.Description
		p = appendReply(p, optList, repServer, d)
	}
	if _, err := c.nc.Write(appendReply(p, optList, repAck, "")); err != nil {
		return fmt.Errorf("answer list: %w", err)
	}
	return nil
}

func (c *conn) startTLS(data []byte) error {
	h, conf := &c.hs, c.srv.opt.TLS
	switch {
	case len(data) > 0:
		return c.reply(optStartTLS, repErrInvalid, "option has data")
	case h.secure:
		return c.reply(optStartTLS, repErrInvalid, "TLS is on already")
	case conf == nil:
		return c.reply(optStartTLS, repErrPolicy, "this server has no TLS")
	case h.r.Buffered() > 0:
		// Plain bytes that would be taken for secure ones: CVE-2021-3716.
		return fmt.Errorf("%w: data sent ahead of TLS", errProtocol)
	}
	if err := c.reply(optStartTLS, repAck, ""); err != nil {
		return err
	}
	tc := tls.Server(c.nc, conf)
	if err := tc.HandshakeContext(context.Background()); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.nc = tc
	// All that was agreed on in the clear is void.
	*h = handshake{r: bufio.NewReaderSize(tc, 4096), noZeroes: h.noZeroes, secure: true}
	return nil
}

// cursor takes big-endian fields off the data of an option; bad once it ran out.
type cursor struct {
	p   []byte
	bad bool
}

func (k *cursor) bytes(n uint32) []byte {
	if k.bad || uint64(n) > uint64(len(k.p)) {
		k.bad = true
		return nil
	}
	p := k.p[:n]
	k.p = k.p[n:]
	return p
}

func (k *cursor) uint32() uint32 {
	if p := k.bytes(4); p != nil {
		return be.Uint32(p)
	}
	return 0
}

func (k *cursor) uint16() uint16 {
	if p := k.bytes(2); p != nil {
		return be.Uint16(p)
	}
	return 0
}

// parseInfo reads the data of INFO and GO: a name and the kinds of information wanted.
func parseInfo(data []byte) (name string, kinds []uint16, ok bool) {
	k := cursor{p: data}
	name = string(k.bytes(k.uint32()))
	n := k.uint16()
	if k.bad || len(name) > maxName || len(k.p) != 2*int(n) {
		return "", nil, false
	}
	for range n {
		kinds = append(kinds, k.uint16())
	}
	return name, kinds, true
}

// info answers INFO and GO.
func (c *conn) info(opt uint32, data []byte) (chosen bool, err error) {
	name, kinds, ok := parseInfo(data)
	if !ok {
		return false, c.reply(opt, repErrInvalid, "malformed option")
	}
	if err := c.choose(name); errors.Is(err, ErrUnknownExport) {
		return false, c.reply(opt, repErrUnknown, clip(err.Error()))
	} else if err != nil {
		return false, c.reply(opt, repErrPolicy, clip(err.Error()))
	}
	p := appendReply(c.appendInfo(nil, opt, kinds), opt, repAck, "")
	if opt == optInfo {
		c.releaseExport()
	}
	if _, err := c.nc.Write(p); err != nil {
		return false, fmt.Errorf("answer option %d: %w", opt, err)
	}
	return opt == optGo, nil
}

// appendInfo appends what there is to know of the chosen export.
func (c *conn) appendInfo(p []byte, opt uint32, kinds []uint16) []byte {
	d := be.AppendUint16(nil, infoExport)
	d = be.AppendUint64(d, uint64(c.size))
	d = be.AppendUint16(d, c.transmissionFlags())
	p = appendReply(p, opt, repInfo, string(d))

	d = be.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{1, 4096, maxPayload} { // minimum, preferred, maximum
		d = be.AppendUint32(d, n)
	}
	p = appendReply(p, opt, repInfo, string(d))
	if slices.Contains(kinds, infoName) {
		p = appendReply(p, opt, repInfo, "\x00\x01"+c.exp.Name)
	}
	if slices.Contains(kinds, infoDescription) && c.exp.Description != "" {
		p = appendReply(p, opt, repInfo, "\x00\x02"+c.exp.Description)
	}
	return p
}

// clip makes a text short enough for the protocol.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxName)], "") }

// parseMetaContext reads the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func parseMetaContext(data []byte) (name string, queries []string, ok bool) {
	k := cursor{p: data}
	name = string(k.bytes(k.uint32()))
	n := k.uint32()
	if k.bad || len(name) > maxName || n > maxQueries {
		return "", nil, false
	}
	for range n {
		queries = append(queries, string(k.bytes(k.uint32())))
	}
	if k.bad || len(k.p) > 0 {
		return "", nil, false
	}
	return name, queries, true
}

func (c *conn) metaContext(opt uint32, data []byte) error {
	h := &c.hs
	set := opt == optSetMetaContext
	if set { // a refused selection is no selection
		h.allocation = false
	}
	name, queries, ok := parseMetaContext(data)
	switch {
	case !h.structured:
		return c.reply(opt, repErrInvalid, "structured replies come first")
	case !ok:
		return c.reply(opt, repErrInvalid, "malformed option")
	}
	e, release, err := c.srv.exports.Open(name)
	if err != nil {
		return c.reply(opt, repErrUnknown, clip(err.Error()))
	}
	found := e.Name
	release()
	match := slices.Contains(queries, contextAllocation) ||
		!set && (len(queries) == 0 || slices.Contains(queries, "base:"))
	var p []byte
	if match {
		id := uint32(0)
		if set {
			id, h.allocation, h.contextOf = contextAllocationID, true, found
		}
		p = appendReply(p, opt, repMetaContext, string(be.AppendUint32(nil, id))+contextAllocation)
	}
	if _, err := c.nc.Write(appendReply(p, opt, repAck, "")); err != nil {
		return fmt.Errorf("answer option %d: %w", opt, err)
	}
	return nil
}

// choose opens an export for the connection, which [Server.Disconnect] finds from then on. Where that is called in between, it may have been for this
// export, which is asked for again.
func (c *conn) choose(name string) error {
	for {
		c.srv.mu.Lock()
		before := c.srv.drops
		c.srv.mu.Unlock()
		e, release, err := c.srv.exports.Open(name)
		if err != nil {
			return err
		}
		c.srv.mu.Lock()
		if c.srv.drops == before {
			c.setExport(e, release)
			c.srv.mu.Unlock()
			return nil
		}
		c.srv.mu.Unlock()
		release()
	}
}

// releaseExport gives the export back, if one is open.
func (c *conn) releaseExport() {
	if c.release == nil {
		return
	}
	c.release()
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.exp, c.release = nil, nil
}

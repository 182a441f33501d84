package residue

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"tidemark"
)

// controlFile is what is needed of global/pg_control, whose layout is one from PostgreSQL 13 to 17: struct ControlFileData of
// src/include/catalog/pg_control.h, in the byte order of the machine.
type controlFile struct {
	checkpoint  uint64 // position of the last checkpoint's record
	timeline    uint32
	segmentSize uint64
}

const (
	controlVersion = 1300
	stateShutDown  = 1 // DB_SHUTDOWNED

	// Where members are that lie behind those that follow in parseControl.
	controlSegmentSize = 228 // xlog_seg_size
	controlChecksum    = 288 // crc, of all before it
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// parseControl reads the control file of a cluster that was shut down cleanly, and refuses any other.
func parseControl(p []byte) (c controlFile, err error) {
	if len(p) < controlChecksum+4 {
		return c, tidemark.Errorf(tidemark.Corrupt, "pg_control has only %d bytes", len(p))
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != controlVersion {
		return c, tidemark.Errorf(tidemark.Invalid, "pg_control is of version %d", v).WithHint("clones of PostgreSQL 13 to 17 can be prepared")
	}
	if crc32.Checksum(p[:controlChecksum], castagnoli) != binary.LittleEndian.Uint32(p[controlChecksum:]) {
		return c, tidemark.Errorf(tidemark.Corrupt, "pg_control has a wrong checksum")
	}
	if state := binary.LittleEndian.Uint32(p[16:]); state != stateShutDown {
		return c, tidemark.Errorf(tidemark.Conflict, "the server was not shut down cleanly (state %d in pg_control)", state).WithHint("start it, and stop it with pg_ctl stop -m fast")
	}
	c.checkpoint, c.timeline = binary.LittleEndian.Uint64(p[32:]), binary.LittleEndian.Uint32(p[48:])
	c.segmentSize = uint64(binary.LittleEndian.Uint32(p[controlSegmentSize:]))
	if c.checkpoint == 0 || c.segmentSize < 1<<20 || c.segmentSize > 1<<30 || c.segmentSize&(c.segmentSize-1) != 0 {
		return c, fmt.Errorf("pg_control makes no sense: checkpoint %x, segments of %d bytes", c.checkpoint, c.segmentSize)
	}
	return c, nil
}

// segment is the name of the file of WAL with a position.
func (c controlFile) segment(pos uint64) string {
	n, per := pos/c.segmentSize, uint64(1<<32)/c.segmentSize
	return fmt.Sprintf("%08X%08X%08X", c.timeline, n/per, n%per)
}

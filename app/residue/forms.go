package residue

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// form says how a pattern came from its value. It is part of the file format.
type form uint8

const (
	formUTF8 form = iota + 1
	formLatin1
	formUTF16LE
	formUTF16BE
	formInt8
	formNumeric
	formUUID
	formBytes
	formDigits

	formMax    = formDigits
	formFolded = 0x80 // a bit beside the text forms
)

var formNames = [...]string{"", "UTF-8", "Latin-1", "UTF-16LE", "UTF-16BE", "int8", "numeric", "uuid", "bytes", "digits"}

// String is the name of the encoding.
func (f form) String() string { return formNames[f&^formFolded] }

func (f form) valid() bool {
	kind := f &^ formFolded
	return kind >= formUTF8 && kind <= formMax && (f&formFolded == 0 || kind <= formUTF16BE)
}

// pattern is what is searched of a value in one form.
type pattern struct {
	bytes []byte
	form  form
}

// textForms are a value in the encodings of text. UTF-8 stands for Latin-1 too where both are the same bytes.
func textForms(value []byte, ways Way) []pattern {
	value = cut(value)
	list := []pattern{{append([]byte(nil), value...), formUTF8}}
	if utf8.Valid(value) {
		runes := []rune(string(value))
		if p := latin1(runes); p != nil && len(p) != len(value) {
			list = append(list, pattern{p, formLatin1})
		}
		var le, be []byte
		for _, u := range utf16.Encode(runes) {
			le = binary.LittleEndian.AppendUint16(le, u)
			be = binary.BigEndian.AppendUint16(be, u)
		}
		list = append(list, pattern{le, formUTF16LE}, pattern{be, formUTF16BE})
	}
	if ways&Folded == 0 {
		return list
	}
	for i := range list {
		fold(list[i].bytes)
		list[i].form |= formFolded
	}
	return list
}

func latin1(runes []rune) []byte {
	p := make([]byte, len(runes))
	for i, r := range runes {
		if r > 0xff {
			return nil
		}
		p[i] = byte(r)
	}
	return p
}

// fold makes upper and lower case the same, byte by byte, in any of the encodings: É is c3 89 or c9 or 00 c9, é is c3 a9 or e9
// or 00 e9. That some other bytes become the same too does no harm, because patterns and disk are folded alike.
func fold(p []byte) {
	for i, b := range p {
		if b >= 'A' && b <= 'Z' || b >= 0x80 && b < 0xa0 || b >= 0xc0 && b < 0xe0 {
			p[i] = b | 0x20
		}
	}
}

// binaryForms are a value as PostgreSQL keeps it in types that are not text.
func binaryForms(value []byte, ways Way) (list []pattern) {
	if ways&Binary == 0 {
		return nil
	}
	if isHex(value) {
		p := make([]byte, hex.DecodedLen(len(value)-2))
		hex.Decode(p, value[2:])
		return []pattern{{cut(p), formBytes}}
	}
	if p := uuid(value); p != nil {
		return []pattern{{p, formUUID}}
	}
	n, err := strconv.ParseInt(string(onlyDigits(value)), 10, 64)
	if err != nil || n < 1<<32 {
		return nil
	}
	if n >= 1<<40 {
		list = append(list, pattern{binary.LittleEndian.AppendUint64(nil, uint64(n)), formInt8})
	}
	if p := numeric(n); len(p) >= MinValue {
		list = append(list, pattern{p, formNumeric})
	}
	return list
}

// isHex reports whether a value is bytea as PostgreSQL prints it, of enough bytes to be searched.
func isHex(value []byte) bool {
	if len(value) < 2+2*MinValue || value[0] != '\\' || value[1] != 'x' {
		return false
	}
	_, err := hex.DecodeString(string(value[2:]))
	return err == nil
}

func uuid(value []byte) []byte {
	if len(value) != 36 || value[8] != '-' || value[13] != '-' || value[18] != '-' || value[23] != '-' {
		return nil
	}
	s := string(value)
	p, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return nil
	}
	return p
}

// numeric is an integer in the digits of NUMERIC: groups of four, each in two bytes, without zero groups at the end.
func numeric(n int64) (p []byte) {
	var groups []uint16
	for ; n > 0; n /= 10000 {
		if g := uint16(n % 10000); g != 0 || len(groups) > 0 {
			groups = append(groups, g)
		}
	}
	for i := len(groups) - 1; i >= 0; i-- {
		p = binary.LittleEndian.AppendUint16(p, groups[i])
	}
	return p
}

// numericHead reports whether the four bytes before the digits of a NUMERIC can be its head: the weight, which is the
// number of groups before the decimal point less one, is at least that of an integer whose zero groups were dropped.
func numericHead(before []byte, groups int) bool {
	head := binary.LittleEndian.Uint16(before[2:])
	if head&0xc000 == 0x8000 { // short: 1 bit sign, 6 of scale, 1 sign of weight, 6 of weight
		return head&0x40 == 0 && int(head&0x3f) >= groups-1
	}
	weight, sign := head, binary.LittleEndian.Uint16(before)
	return sign&0x8000 == 0 && weight < 64 && int(weight) >= groups-1
}

// onlyDigits are the digits of a value that has only digits and separators, nil for others.
func onlyDigits(value []byte) (digits []byte) {
	for i, r := range string(value) {
		switch {
		case r >= '0' && r <= '9':
			digits = append(digits, byte(r))
		case r == '+' && i == 0:
		case r == ' ' || r == 0xa0 || r == '-' || r == '.' || r == '/' || r == '(' || r == ')':
		default:
			return nil
		}
	}
	return digits[:min(len(digits), maxDigitValue)]
}

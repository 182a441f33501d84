package block

import "unsafe"

// Aligned returns n bytes that begin at a multiple of [BlockSize] in memory, as direct I/O wants them.
func Aligned(n int) []byte {
	p := make([]byte, n+BlockSize)
	skip := -uintptr(unsafe.Pointer(&p[0])) & (BlockSize - 1)
	return p[skip : int(skip)+n : int(skip)+n]
}

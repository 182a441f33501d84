package process

import "runtime"

// blockedThreads is how many processors the runtime is told there are: one for each
// thread that waits in the kernel for requests or replies, and some for the rest.
const blockedThreads = 6

// SpareProcessors is for processes that pass on requests of disks, whose threads wait in the kernel most of the time. With fewer processors
// than there are such threads, the runtime's monitor takes them away and gives them back all the time: a tenth of an attacher's time, a
// quarter of a tap's.
func SpareProcessors() { runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), blockedThreads)) }

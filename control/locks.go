package control

import "sync"

// locks are locks by name.
type locks struct {
	mu  sync.Mutex
	all map[string]*lock // guarded by mu
}

type lock struct {
	sync.Mutex
	users int // who have it, or wait for it; guarded by locks.mu
}

// lock locks a name until unlock is called.
func (l *locks) lock(name string) (unlock func()) {
	l.mu.Lock()
	if l.all == nil {
		l.all = map[string]*lock{}
	}
	k := l.all[name]
	if k == nil {
		k = new(lock)
		l.all[name] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.all, name)
		}
	}
}

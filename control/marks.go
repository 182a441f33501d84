package control

import (
	"context"
	"time"
)

// turn waits until no other AppShot of these applications is made. Two at once would stop each other. Each of several is
// waited for in the order of their names.
func (p *tappings) turn(ctx context.Context, members []app) (leave func(), err error) {
	var taken []chan struct{}
	leave = func() {
		for _, t := range taken {
			<-t
		}
	}
	for _, a := range members {
		p.mu.Lock()
		if p.turns == nil {
			p.turns = map[string]chan struct{}{}
		}
		t := p.turns[a.name]
		if t == nil {
			t = make(chan struct{}, 1)
			p.turns[a.name] = t
		}
		p.mu.Unlock()
		select {
		case t <- struct{}{}:
			taken = append(taken, t)
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		}
	}
	return leave, nil
}

// await registers for what becomes of the mark with an id.
func (p *tappings) await(id string) <-chan shotResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan shotResult, 1)
	p.shots[id] = ch
	return ch
}

// take returns who waits for a mark that has come, once, and whether it is refused.
func (p *tappings) take(id string) (waiting chan shotResult, refused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting, refused = p.shots[id], p.late[id]
	delete(p.shots, id)
	return waiting, refused // it may come again, on another connection
}

// lateTime is how long a mark is known that is refused.
const lateTime = time.Hour

// refuse has a mark forgotten if it still comes. It reports false if it has come, and who waits for it is told.
func (p *tappings) refuse(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shots[id] == nil {
		return false
	}
	delete(p.shots, id)
	p.late[id] = true
	time.AfterFunc(lateTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.late, id)
	})
	return true
}

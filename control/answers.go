package control

import (
	"context"
	"sync"
	"time"

	"tidemark/catalog"
)

// Who asks on a full disk is answered all the same: to make room is a request as well. So these use the reserve, as jobs do.

// TakeKey records that a request with a key begins: see [catalog.Catalog.TakeKey]. A key that may have been taken although this fails is released.
func (c *Control) TakeKey(ctx context.Context, k catalog.Key, fingerprint string) (*catalog.Asked, error) {
	a, err := c.catalog.TakeKey(ctx, k, fingerprint)
	if err != nil && c.giveReserve(err) {
		a, err = c.catalog.TakeKey(ctx, k, fingerprint)
	}
	if catalog.MayBeDone(ctx, err) {
		c.endLater(keyEnd{key: k}, err)
	}
	return a, err
}

// Answered records what the request that has a key was answered. If the catalog cannot be told now, it is later, as long as the server runs.
func (c *Control) Answered(ctx context.Context, k catalog.Key, a catalog.Answer) {
	c.endKey(ctx, keyEnd{key: k, answer: &a})
}

// ReleaseKey forgets the key of a request that was not done. If the catalog cannot be told now, it is later, as long as the server runs.
func (c *Control) ReleaseKey(ctx context.Context, k catalog.Key) { c.endKey(ctx, keyEnd{key: k}) }

// keyEnd is how the request that has a key has ended.
type keyEnd struct {
	key    catalog.Key
	answer *catalog.Answer // nil: it was not done, and the key is free
	ended  time.Time
}

// put puts it down. To do so once more does no harm, and none if the key is another request's by now.
func (e keyEnd) put(ctx context.Context, cat *catalog.Catalog) error {
	if e.answer == nil {
		return cat.ReleaseKey(ctx, e.key)
	}
	return cat.Answered(ctx, e.key, *e.answer)
}

// size is about how much memory it takes, in bytes.
func (e keyEnd) size() int {
	n := 512 + len(e.key.Name)
	if e.answer != nil {
		n += len(e.answer.Body) + len(e.answer.Location)
	}
	return n
}

const (
	// maxLateKeys bounds the memory for ends that the catalog could not be told, in bytes. What is more is given up: a key
	// without an end is refused until it is forgotten.
	maxLateKeys = 16 << 20
	// lateKeyPause is how often it is tried to tell them.
	lateKeyPause = time.Second
)

// lateKeys are the ends that the catalog could not be told.
type lateKeys struct {
	mu    sync.Mutex
	ends  []keyEnd // guarded by mu; the oldest first
	bytes int      // of ends; guarded by mu
}

// endKey tells the catalog how a request ended: now, or later.
func (c *Control) endKey(ctx context.Context, e keyEnd) {
	err := e.put(ctx, c.catalog)
	if err != nil && c.giveReserve(err) {
		err = e.put(ctx, c.catalog)
	}
	if err != nil {
		c.endLater(e, err)
	}
}

// endLater keeps an end that the catalog could not be told, and has it told again until it is.
func (c *Control) endLater(e keyEnd, cause error) {
	e.ended = time.Now()
	l := &c.lateKeys
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes+e.size() > maxLateKeys {
		c.log.Error("how a request with a key ended is lost: the key is refused for a day", "error", cause)
		return
	}
	l.ends, l.bytes = append(l.ends, e), l.bytes+e.size()
	if len(l.ends) == 1 {
		c.log.Warn("how a request with a key ended cannot be recorded now, and is later", "error", cause)
		c.jobs.wg.Go(c.endLate)
	}
}

// endLate tells the catalog what it could not be told, until nothing is left of that, or the server stops.
func (c *Control) endLate() {
	again := time.NewTicker(lateKeyPause)
	defer again.Stop()
	for {
		select {
		case <-c.jobs.ctx.Done():
			return
		case <-again.C:
		}
		if c.endSome() {
			return
		}
	}
}

// endSome tells what it can now, and reports whether nothing is left.
func (c *Control) endSome() bool {
	l := &c.lateKeys
	l.mu.Lock()
	ends := l.ends
	l.mu.Unlock()
	var left []keyEnd
	for _, e := range ends {
		err := e.put(c.jobs.ctx, c.catalog)
		if err != nil && c.giveReserve(err) {
			err = e.put(c.jobs.ctx, c.catalog)
		}
		if err != nil && time.Since(e.ended) < catalog.AnswersLast { // then the key is forgotten
			left = append(left, e)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends, l.bytes = append(left, l.ends[len(ends):]...), 0
	for _, e := range l.ends {
		l.bytes += e.size()
	}
	return len(l.ends) == 0
}

package agent

import (
	"context"
	"crypto/tls"
	"time"

	"tidemark"
)

// A process that is stopped, or hangs in its host's memory, has a kernel that goes on to acknowledge what is sent to it, so keep-alives of TCP say
// nothing of it. So a server says something to the agent of another host every few seconds, which that answers; the first time it says how often
// it will, and the agent listens for it in turn. An agent of before that does not know the verb says so, which is an answer; a server of before says
// nothing, and is not listened for.

const (
	// alive is the verb of what is asked only to be answered. Its body is how often it will be asked.
	alive = "alive"
	// aliveEvery is how often that is.
	aliveEvery = 5 * time.Second
	// silentLooks is how many times in a row one end looks, and has heard nothing since the last, until the other one is gone: after 25 to 30 s. A
	// process that is alive answers in milliseconds, and within seconds where the processors are many times overbooked or the machine
	// swaps; pauses of a virtual machine that is moved or has its snapshot taken are some seconds. More would only have others wait.
	// Looks are counted, and not time, so that who was stopped himself does not take that for a silence of the other.
	silentLooks = 5
	// callAlive is the number of a call whose answer nobody waits for.
	callAlive = 0
)

// ErrSilent: the other end of a connection of calls has said nothing for so long that it is taken for gone, though its kernel is there.
var ErrSilent = tidemark.Errorf(tidemark.Unavailable, "nothing was heard from the other end for %v, and it is taken for gone", silentLooks*aliveEvery).WithHint("is that process stopped, or its host out of memory?")

// silence returns true when nothing was heard for so many looks, and false when ended is closed before. Each time it looks it calls tick.
func (i *intake) silence(every time.Duration, ended <-chan none, tick func()) bool {
	t := time.NewTicker(every)
	defer t.Stop()
	last := i.reads.Load()
	for missed := 0; missed < silentLooks; {
		select {
		case <-t.C:
		case <-ended:
			return false
		}
		missed++
		if n := i.reads.Load(); n != last {
			last, missed = n, 0
		}
		tick()
	}
	return true
}

// stayHeard asks the other end whether it is alive, until ended is closed, and returns true if that was silent for too long. A question that cannot be
// sent keeps nobody from looking.
func (l *link) stayHeard(every time.Duration, ended <-chan none) bool {
	due := make(chan none, 1)
	defer close(due)
	due <- none{}
	go func() {
		for range due {
			if l.send(message{Call: callAlive, Verb: alive, Body: mustJSON(every)}) != nil {
				return // who listens finds out as well
			}
		}
	}()
	return l.in.silence(every, ended, func() {
		select {
		case due <- none{}:
		default: // the last one is on its way yet
		}
	})
}

// cut ends the connection without a word: who does not listen takes none, and to say good-bye would be waited for.
func (l *link) cut() {
	if t, ok := l.conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	l.conn.Close()
}

// Answers reports whether calls can be made now, and the agent answers one within a time.
func (a *Agent) Answers(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answered := make(chan bool, 1)
	go func() {
		_, err := do[none](ctx, a, alive, a.every, nil)
		answered <- err == nil || tidemark.KindOf(err) == tidemark.Invalid // of one that does not know the verb
	}()
	select {
	case ok := <-answered:
		return ok
	case <-ctx.Done():
		return false
	}
}

// doAlive answers, and listens for the server from now on.
func doAlive(_ context.Context, s *session, every time.Duration, _ func(any)) (none, error) {
	if every <= 0 {
		return none{}, tidemark.Errorf(tidemark.Invalid, "nobody asks each %v", every)
	}
	s.listening.Do(func() {
		go func() {
			if s.in.silence(every, s.over, func() {}) && s.cut != nil {
				s.cut(ErrSilent)
			}
		}()
	})
	return none{}, nil
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this test binary the command tidemark as well, so that
// scripts, the servers they start, and the attachers of those servers all run
// what is under test.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tidemark": main})
}

// TestScripts runs the scenarios of testdata: one for each group of verbs,
// against a real server. What a scenario may use beside the verbs:
//
//	server start|stop|kill [DIR]   a server on $WORK/DIR (default d); kill is kill -9
//	server freeze|thaw [DIR]       it stands still, and goes on
//	postgres start|stop            a PostgreSQL of the scenario's own; sets $PG (what protect
//	                               takes) and $PROD (what psql takes)
//	machine start|kill|clean       QEMU's storage daemon as a virtual machine with disk0 and disk1, with
//	                               QMP on qmp.sock and NBD on nbd.sock; clean: it has nothing of ours
//	deaf                           a TCP port that accepts and never answers; sets $DEAF
//	receiver [STATUS]              a URL that takes messages, and answers them with STATUS (200); sets $HOOK, and keeps what
//	                               it took as lines of received, those that were signed with the key 0123456789abcdef marked
//	json EXPR                      an expression of jq holds for what was printed last
//	set VAR EXPR                   keep what an expression of jq makes of what was printed last
//	until EXPR COMMAND             run a command again and again until json EXPR holds
//	fails COMMAND                  exit code 1, nothing on stdout, one line on stderr
//	misused COMMAND                the same with exit code 2
//	holds FILE TEXT                the text is somewhere in a file, which may have large holes
//	clean                          no mount, attachment, loop device or process is left behind
//	[has:TOOL]                     a program, root or postgres is there; in CI always true, so
//	                               that a scenario fails there rather than be skipped
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server":   doServer,
			"postgres": doPostgres,
			"machine":  doMachine,
			"deaf":     doDeaf,
			"receiver": doReceiver,
			"json":     doJSON,
			"set":      doSet,
			"until":    doUntil,
			"fails":    func(ts *testscript.TestScript, neg bool, args []string) { refused(ts, 1, args) },
			"misused":  func(ts *testscript.TestScript, neg bool, args []string) { refused(ts, 2, args) },
			"clean":    doClean,
			"holds":    doHolds,
		},
	})
}

// stage is what one scenario has started.
type stage struct {
	dir      string
	servers  map[string]*exec.Cmd // by data directory
	postgres *exec.Cmd
	machine  *exec.Cmd
	port     int // of PostgreSQL
	receiver *receiver
}

type stageKey struct{}

func stageOf(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

func setup(env *testscript.Env) error {
	s := &stage{dir: env.WorkDir, servers: map[string]*exec.Cmd{}}
	env.Values[stageKey{}] = s
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		return err
	}
	env.Vars = append(env.Vars, "LC_ALL=C", "TIDEMARK_SOCKET="+filepath.Join(env.WorkDir, "d", socketName), "DOCS="+docs,
		"LOSSY="+filepath.Join(docs, "../cmd/tidemark/testdata/lossy"))
	env.Defer(s.strike)
	// PostgreSQL does not run as root, and has to reach its files below.
	for _, dir := range []string{env.WorkDir, filepath.Dir(env.WorkDir)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// condition knows has:TOOL, where TOOL may be root or postgres too.
func condition(cond string) (bool, error) {
	if os.Getenv("CI") != "" {
		return true, nil
	}
	switch what := strings.TrimPrefix(cond, "has:"); what {
	case "root":
		_, err := os.Stat("/dev/fuse")
		return os.Getuid() == 0 && err == nil, nil
	case "postgres":
		return postgresBin() != "", nil
	default:
		_, err := exec.LookPath(what)
		return err == nil, nil
	}
}

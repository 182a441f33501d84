package postgres

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"
)

// confMark begins every configuration file that Tidemark wrote.
const confMark = "# Written by Tidemark for this clone."

// carried are the production settings a clone keeps: those that queries and
// applications notice, and none that reaches outside of the server.
var carried = map[string]bool{
	"timezone": true, "datestyle": true, "intervalstyle": true, "lc_monetary": true,
	"lc_numeric": true, "lc_time": true, "default_text_search_config": true, "search_path": true,
	"standard_conforming_strings": true, "bytea_output": true, "client_encoding": true, "extra_float_digits": true,
	"default_transaction_isolation": true, "default_table_access_method": true, "default_toast_compression": true,
	"work_mem": true, "maintenance_work_mem": true, "effective_cache_size": true, "random_page_cost": true,
	"seq_page_cost": true, "effective_io_concurrency": true, "jit": true, "password_encryption": true,
	"max_locks_per_transaction": true, "max_pred_locks_per_transaction": true, "xmlbinary": true, "xmloption": true,
	"default_statistics_target": true, "from_collapse_limit": true, "join_collapse_limit": true, "plan_cache_mode": true,
	"array_nulls": true, "backslash_quote": true, "escape_string_warning": true, "lo_compat_privileges": true,
	"transform_null_equals": true, "timezone_abbreviations": true, "max_files_per_process": true,
}

// actors are preloaded libraries that do things by themselves, in background
// processes or towards other hosts. A clone never loads them.
var actors = []string{"pg_cron", "pglogical", "bdr", "pg_partman_bgw", "pgagent", "pg_failover_slots", "repmgr", "pg_squeeze", "pg_net", "pgactive", "spock", "citus"}

var (
	confLine = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=?\s*(?:'((?:[^'\\]|''|\\.)*)'|([^\s#']+))\s*(?:#.*)?$`)
	libName  = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
)

// parseConf reads the plain settings of a postgresql.conf. Lines it does not
// understand are left out, as are includes: nothing of a clone depends on them.
func parseConf(text string) map[string]string {
	conf := map[string]string{}
	for line := range strings.Lines(text) {
		m := confLine.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil {
			continue
		}
		value := m[3]
		if value == "" {
			value = strings.NewReplacer("''", "'", `\'`, "'", `\\`, `\`).Replace(m[2])
		}
		conf[strings.ToLower(m[1])] = value
	}
	return conf
}

// quoteConf writes a value as postgresql.conf wants it.
func quoteConf(v string) string {
	v = strings.NewReplacer("\x00", "", "\n", " ", "\r", " ").Replace(v)
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`).Replace(v) + "'"
}

// production collects the settings the copy had, the later file winning.
func (r *recovery) production() map[string]string {
	all := map[string]string{}
	dir := r.t.ConfigDir
	if dir == "" {
		dir = filepath.Join(r.t.Root, "config")
	}
	files := []string{filepath.Join(dir, "postgresql.conf")}
	if more, err := filepath.Glob(filepath.Join(dir, "conf.d", "*.conf")); err == nil {
		files = append(files, more...)
	}
	files = append(files, filepath.Join(r.t.DataDir, "postgresql.conf.production"), filepath.Join(r.t.DataDir, "postgresql.auto.conf.production"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // each of them is optional
		}
		for k, v := range parseConf(string(text)) {
			all[k] = v
		}
	}
	return all
}

// libraries are those of shared_preload_libraries that exist here and act only when asked.
func (r *recovery) libraries(prod string) string {
	var keep []string
	for lib := range strings.SplitSeq(prod, ",") {
		lib = strings.TrimPrefix(strings.Trim(strings.TrimSpace(lib), `"`), "$libdir/")
		if !libName.MatchString(lib) || slices.Contains(actors, lib) {
			continue
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(r.bin), "lib", lib+".so")); err == nil {
			keep = append(keep, lib)
		}
	}
	return strings.Join(keep, ",")
}

// setting is one line of a configuration file.
type setting struct{ name, value string }

// writeConfig writes the clone's configuration and the way its recovery ends.
func (r *recovery) writeConfig() error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s Recover replaces it at every start.\n# Production's settings are in *.production beside it.\n\n", confMark)
	prod := r.production()
	var names []string
	for k := range prod {
		if carried[k] {
			names = append(names, k)
		}
	}
	sort.Strings(names)
	for _, k := range names {
		fmt.Fprintf(&b, "%s = %s\n", k, quoteConf(prod[k]))
	}
	for _, k := range sortedKeys(r.t.Settings) {
		fmt.Fprintf(&b, "%s = %s\n", k, quoteConf(r.t.Settings[k]))
	}
	sections := [][]setting{r.required(prod), r.isolation(prod)}
	signal := r.archiveRecovery()
	if signal {
		sections = append(sections, r.stop())
	}
	for _, s := range sections {
		b.WriteString("\n")
		for _, kv := range s {
			fmt.Fprintf(&b, "%s = %s\n", kv.name, quoteConf(kv.value))
		}
	}
	files := []setting{{"postgresql.conf", b.String()}, {"postgresql.auto.conf", confMark + "\n"}, {"pg_hba.conf", r.hbaConf()}, {"pg_ident.conf", confMark + "\n"}}
	if signal {
		files = append(files, setting{"recovery.signal", ""})
	}
	for _, f := range files {
		if err := r.write(f.name, f.value); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		if confName.MatchString(k) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

var confName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// hbaConf says who may connect: whoever can reach the socket directory, which only the server's user
// and root can, is trusted; over TCP the roles' passwords hold, on this host, and from others if the clone listens for them; nothing
// replicates from a clone.
func (r *recovery) hbaConf() string {
	from := []string{"127.0.0.1/32", "::1/128"}
	if ip := net.ParseIP(r.t.Listen); ip != nil && !ip.IsLoopback() {
		from = append(from, "all")
	}
	text := confMark + "\nlocal all all trust\n"
	for _, address := range from {
		text += "host all all " + address + " scram-sha-256\n"
	}
	return text
}

// required are settings without which this copy could not be recovered.
func (r *recovery) required(prod map[string]string) []setting {
	c := r.control
	buffers := r.t.SharedBuffers
	if buffers == "" {
		buffers = "128MB"
	}
	return []setting{
		{"max_connections", fmt.Sprint(max(c.maxConnections, 100))},
		{"max_worker_processes", fmt.Sprint(max(c.maxWorkers, 8))},
		{"max_prepared_transactions", fmt.Sprint(c.maxPrepared)},
		{"max_locks_per_transaction", fmt.Sprint(max(c.maxLocks, 64))},
		{"track_commit_timestamp", c.commitTimestamps},
		{"shared_buffers", buffers},
		{"huge_pages", "try"},
		{"fsync", "on"},
		{"full_page_writes", "on"},
		{"shared_preload_libraries", r.libraries(prod["shared_preload_libraries"])},
	}
}

// isolation are the settings that keep the clone from production. They come last, and so win.
func (r *recovery) isolation(prod map[string]string) []setting {
	s := []setting{
		{"cluster_name", clusterName(r.t.Name)},
		{"listen_addresses", r.t.Listen},
		{"port", fmt.Sprint(r.t.Port)},
		{"unix_socket_directories", r.t.SocketDir},
		{"unix_socket_permissions", "0700"},
		{"ssl", "off"},
		{"archive_mode", "off"},
		{"archive_command", ""},
		{"archive_cleanup_command", ""},
		{"recovery_end_command", ""},
		{"primary_conninfo", ""},
		{"primary_slot_name", ""},
		{"restore_command", ""},
		{"synchronous_standby_names", ""},
		{"wal_level", "replica"},
		// A server that answers queries while it recovers stops at the first change of
		// a limit it finds in the log, and waits for a human.
		{"hot_standby", "off"},
		{"max_wal_senders", "0"},
		{"max_replication_slots", "10"},
		{"max_logical_replication_workers", "0"},
		{"session_preload_libraries", ""},
		{"local_preload_libraries", ""},
		{"logging_collector", "off"},
		{"log_destination", "stderr"},
		{"log_line_prefix", "%m [%p] "},
		{"lc_messages", "C"}, // its lines are read by us
		{"dynamic_library_path", "$libdir"},
	}
	if r.major >= 14 {
		// A server that finds itself restored from a backup makes every file durable
		// first; one call for the file system does that as well as a thousand.
		s = append(s, setting{"recovery_init_sync_method", "syncfs"})
	}
	if r.major >= 15 {
		s = append(s, setting{"archive_library", ""})
	}
	for k := range prod {
		if strings.HasPrefix(k, "timescaledb.") {
			return append(s, setting{"timescaledb.max_background_workers", "0"})
		}
	}
	return s
}

// clusterName is shown in process titles: printable ASCII, under 64 bytes.
func clusterName(name string) string {
	clean := strings.Map(func(c rune) rune {
		if c < 33 || c > 126 {
			return '_'
		}
		return c
	}, name)
	s := "tidemark:" + clean
	return s[:min(len(s), 60)]
}

// archiveRecovery reports that the copy needs the log of a capture: it comes from
// one, or its own recovery from one was not finished. All else is plain crash recovery.
func (r *recovery) archiveRecovery() bool {
	if _, err := os.Stat(filepath.Join(r.t.DataDir, "backup_label")); err == nil {
		return true
	}
	return strings.Contains(r.control.state, "archive recovery")
}

// stop are the settings that end recovery at the place asked for.
func (r *recovery) stop() []setting {
	s := []setting{{"restore_command", restoreCommand(r.t.WALDir)}, {"recovery_target_action", "promote"}, {"recovery_target_inclusive", "on"}}
	st := r.t.Stop
	timeline := setting{"recovery_target_timeline", "latest"}
	switch {
	case st.immediate():
		return append(s, setting{"recovery_target_timeline", "current"}, setting{"recovery_target", "immediate"})
	case st.LSN != 0:
		s = append(s, setting{"recovery_target_lsn", st.LSN.String()})
	case !st.Time.IsZero():
		s = append(s, setting{"recovery_target_time", st.Time.UTC().Truncate(time.Microsecond).Format("2006-01-02 15:04:05.000000+00")})
	}
	return append(s, timeline)
}

// restoreCommand fetches log files from a Receiver's directory, the ones set
// aside at a gap and the unfinished last one too.
func restoreCommand(walDir string) string {
	if walDir == "" {
		return "false"
	}
	dir := "'" + strings.NewReplacer("'", `'\''`, "%", "%%").Replace(walDir) + "'"
	return fmt.Sprintf(`for f in %[1]s/%%f %[1]s/*/%%f %[1]s/%%f.partial %[1]s/*/%%f.partial; do test -f "$f" && exec cp "$f" "%%p"; done; exit 1`, dir)
}

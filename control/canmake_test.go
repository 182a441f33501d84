package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark"
)

// What cannot be promised to an application as it will be is refused before anything is made, with the same line whether it is a dry run or not.
func TestCannotBePromised(t *testing.T) {
	c, _ := listens(t)
	if _, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: "db1"}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tappedVolume(t, c, "ledger")
	const templates = `kind: Template
name: hourly
capture: {every: 1h}
---
kind: Template
name: logged
log: {keep: 1d}
---
kind: Template
name: shot
appshot: {every: 5m}
---
kind: Template
name: journaled
cdp: {window: 1h}
---
kind: Template
name: both
cdp: {window: 1h}
log: {keep: 1d}
---
`
	application := func(fields string) string { return "kind: Application\nname: orders\n" + fields + "\n" }
	const group = "---\nkind: Group\nname: bank\nmembers: [ledger, orders]\nsla: "
	for _, x := range []struct{ documents, want string }{
		{application("source: " + dir + "\nsla: logged"), "the template logged promises a log, and orders is no database whose log is received"},
		{application("source: " + disk + "\nsla: logged"), "the template logged promises a log, and orders is no database whose log is received"},
		{application("source: " + disk + "\nsla: both"), "the template both promises a log, and orders is no database whose log is received"},
		{application("source: /srv\nhost: db1\nsla: logged"), "the template logged promises a log, and orders is no database whose log is received"},
		{application("source: " + dir + "\nsla: shot"), "the template shot promises AppShots, and orders is captured by copying"},
		{application("source: postgres:///orders\nsla: shot"), "the template shot promises AppShots, and orders is captured by copying"},
		{application("source: /dev/vg0/orders\nhost: db1\nsla: shot"), "the template shot promises AppShots, and orders is captured by copying"},
		{application("source: " + dir + "\nsla: journaled"), "the template journaled promises any point by cdp, and the writes of orders are not journaled"},
		{application("source: postgres:///orders\nsla: journaled"), "the template journaled promises any point by cdp, and the writes of orders are not journaled"},
		{application("source: "+disk) + group + "both\n", "the template both promises a log, and orders is no database whose log is received"},
		{application("source: "+dir) + group + "journaled\n", "the template journaled promises any point by cdp, and the writes of orders are not journaled"},
		{application("source: "+dir+"\nsla: hourly") + group + "\"\"\n", "orders is not tapped, and cannot be marked in the moment of others"},
		{application("source: "+disk+"\nsla: hourly") + group + "journaled\n", "the template journaled promises any point by cdp, and the writes of orders are not journaled"},
		{application("source: " + dir + "\nalso: [" + disk + "]\nsla: hourly"), "only what is protected with --cdp has a window or several disks"},
		{application("source: qemu:/run/vm.sock\nsla: hourly"), "a virtual machine is protected by its writes"},
		{application("source: " + disk + "\nsla: journaled\noptions: {disk_sise: 1GiB}"), "there is no option \"disk_sise\""},
	} {
		var told [2]string
		for i, dry := range []bool{true, false} {
			a, err := c.Apply(t.Context(), []byte(templates+x.documents), dry)
			if tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), x.want) || len(a.Jobs) > 0 {
				t.Errorf("%s: dry run %v: %v, by %v", x.documents, dry, err, a.Jobs)
			}
			if err != nil {
				told[i] = err.Error()
			}
		}
		if told[0] != told[1] {
			t.Errorf("%s: a dry run says %q, and else it is %q", x.documents, told[0], told[1])
		}
		if list, err := c.Templates(t.Context()); err != nil || len(list) > 0 {
			t.Fatalf("%s: there are %v, %v", x.documents, list, err)
		}
	}
	for _, documents := range []string{
		application("source: postgres:///orders\nsla: logged"), application("source: " + disk + "\nsla: journaled"), application("source: " + dir + "\nsla: hourly"),
		application("source: /dev/vg0/orders\nalso: [/dev/vg0/log]\nhost: db1\nsla: journaled"), application("source: /dev/vg0/orders\nhost: db1") + group + "journaled\n",
	} {
		if _, err := c.Apply(t.Context(), []byte(templates+documents), true); err != nil {
			t.Errorf("%s: %v", documents, err)
		}
	}
	// Who asks for it by hand is told the same.
	declared(t, c, templates)
	_, err := c.Protect(t.Context(), tidemark.ProtectSpec{Name: "orders", Source: disk, SLA: "logged"})
	if tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "orders is no database whose log is received") {
		t.Errorf("by hand: %v", err)
	}
}

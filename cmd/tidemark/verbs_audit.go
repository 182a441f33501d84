package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// usualAudit is how many records of the audit are listed if nobody says how many.
const usualAudit = 50

func auditCommand() *cobra.Command {
	var user, object string
	var most int
	var verify, checkpoint bool
	var against []string
	c := &cobra.Command{Use: "audit", Short: "Who did what, newest first", Args: takes(0),
		Long: `List who did what, newest first. With --verify, all records are read and held
against each other and against the signed checkpoints of this server, and with
--against, against copies of checkpoints that were kept elsewhere. --checkpoint
prints such a copy. One can be appended to the other in a file.`,
		Example: "  tidemark audit --object orders\n  tidemark audit --checkpoint\n  tidemark audit --verify --against /mnt/elsewhere/checkpoints",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case most < 1:
				return usage(tidemark.Errorf(tidemark.Invalid, "%d records cannot be listed", most).WithHint("give 1 or more"))
			case verify && checkpoint:
				return usage(tidemark.Errorf(tidemark.Invalid, "--verify and --checkpoint are two things").WithHint("give one of them; a copy to verify with is named by --against"))
			case len(against) > 0 && !verify:
				return usage(tidemark.Errorf(tidemark.Invalid, "--against says what to verify with").WithHint("give --verify, too"))
			case checkpoint:
				return tell(func(k access.CheckpointCopy) { fmt.Println(k) })(server().AuditCheckpoint(cmd.Context()))
			case verify:
				copies, err := readCopies(against)
				if err != nil {
					return err
				}
				return tell(printVerified)(server().VerifyAudit(cmd.Context(), copies...))
			}
			return printList(client.First(most, server().Audit(cmd.Context(), user, object)), printAudit)
		}}
	f := c.Flags()
	f.StringVar(&user, "user", "", "only what this user did")
	f.StringVar(&object, "object", "", "only what was done to something of this name")
	f.IntVar(&most, "limit", usualAudit, "how many")
	f.BoolVar(&verify, "verify", false, "check that nothing was changed, removed or inserted")
	f.StringArrayVar(&against, "against", nil, "with --verify, a file of checkpoints that were kept elsewhere")
	f.BoolVar(&checkpoint, "checkpoint", false, "print a signed checkpoint, to be kept elsewhere")
	return c
}

func printAudit(list []access.AuditRecord) {
	var rows [][]string
	for _, r := range list {
		who := r.User
		if who == "" && r.Method != "" { // by the socket, or by nobody himself
			who = "(" + string(r.Method) + ")"
		}
		rows = append(rows, []string{strconv.FormatInt(r.Seq, 10), when(r.Time), dash(who), string(r.Action), dash(r.Object), string(r.Outcome), dash(r.Detail)})
	}
	table("SEQ TIME WHO ACTION OBJECT OUTCOME DETAIL", rows)
}

func printVerified(r access.AuditResult) {
	fmt.Printf("%d records hold together\n", r.Records)
	if r.At != nil {
		fmt.Printf("signed checkpoints of this server reach to record %d, of %s\n", r.Through, when(*r.At))
	}
	if r.Copies > 0 {
		fmt.Printf("the copies that were given reach to record %d\n", r.CopiesThrough)
	}
	if r.OtherKeys > 0 {
		fmt.Printf("%d of them have another key than this server: is it another server's, or was the key replaced?\n", r.OtherKeys)
	}
	if r.Waiting > 0 {
		fmt.Printf("%d records wait, and come when the catalog can take them\n", r.Waiting)
	}
}

// maxCopiesFile bounds a file of copies, in bytes: one a day of a thousand years is smaller.
const maxCopiesFile = 64 << 20

// readCopies reads files of copies of checkpoints, of which those are taken that reach the farthest.
func readCopies(paths []string) (all []access.CheckpointCopy, err error) {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, tidemark.Errorf(tidemark.Unavailable, "the copy of checkpoints cannot be read: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, maxCopiesFile))
		f.Close()
		if err != nil {
			return nil, tidemark.Errorf(tidemark.Unavailable, "the copy of checkpoints %s cannot be read: %w", path, err)
		}
		list, err := access.ParseCopies(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, list...)
	}
	return access.Farthest(all)
}

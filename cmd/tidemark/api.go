package main

import (
	"os"

	"github.com/spf13/cobra"

	"tidemark/api"
)

func apiCommand() *cobra.Command {
	return group(&cobra.Command{Use: "api", Short: "The API, for programs"}, apiDocument(), apiAuthority())
}

func apiDocument() *cobra.Command {
	return &cobra.Command{Use: "openapi", Short: "Print the OpenAPI document of the API", Args: takes(0),
		Long:    "Print the OpenAPI 3.1 document of the API. No server is asked: it is that of\nthis binary. A server has its own at /openapi.json.",
		Example: "  tidemark api openapi | jq .paths",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := os.Stdout.Write(api.Document())
			return err
		}}
}

func apiAuthority() *cobra.Command {
	return &cobra.Command{Use: "authority", Short: "Print the certificate by which clients know the server", Args: takes(0),
		Long:    "Print, as PEM, the certificate of the authority that signs the server's. At the\nserver's socket it can be trusted; bring it to those who use the API over the\nnetwork, for --ca, or for curl --cacert.",
		Example: "  tidemark api authority | tee tidemark-ca.pem",
		RunE: func(cmd *cobra.Command, _ []string) error {
			pem, err := server().Authority(cmd.Context())
			if err == nil {
				_, err = os.Stdout.WriteString(pem)
			}
			return err
		}}
}

// Crane's registry with the referrers API, which `crane registry serve` leaves off.
// Usage: registry ADDRESS DIRECTORY
package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	blobs := registry.NewDiskBlobHandler(os.Args[2])
	inner := registry.New(registry.WithBlobHandler(blobs), registry.WithReferrersSupport(true))
	outer := func(answer http.ResponseWriter, request *http.Request) {
		// The specification asks for OCI-Subject; crane's package does not send it.
		if request.Method == "PUT" && strings.Contains(request.URL.Path, "/manifests/") {
			body, _ := io.ReadAll(request.Body)
			request.Body = io.NopCloser(bytes.NewReader(body))
			var manifest struct{ Subject struct{ Digest string } }
			if json.Unmarshal(body, &manifest) == nil && manifest.Subject.Digest != "" {
				answer.Header().Set("OCI-Subject", manifest.Subject.Digest)
			}
		}
		inner.ServeHTTP(answer, request)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(outer)))
}

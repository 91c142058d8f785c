#!/usr/bin/env bash
# Collect what the GPU lane needs on a machine with a network, as parts below 60 MiB each, in
# tests/gpu/parts. See tests/gpu/README.md. Options: --cache DIR, --have DIR, --preset N, --part-mib N.
# Wheels come from the index that pip is set up for; MAVEN_REPOSITORY has to name a Maven repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/gpu fetch "$@"

#!/usr/bin/env bash
# Run the GPU lane on this machine, without Docker and without a network: tests/gpu/README.md.
#   run.sh [--cpu] [--only 1,3] [--seconds N] [--resume RECORD] [--record FILE]
# Parts of tests/gpu/fetch.sh that lie in $PARTS (tests/gpu/parts) are joined first, as far as they
# are here. The record goes to --record, or $OUT/record.json, or the work folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
parts=${PARTS:-tests/gpu/parts}
joined=${JOINED:-tests/gpu/joined}
work=${WORK:-tests/gpu/work}
mkdir -p "$work"
if [[ -f $parts/manifest.json ]]; then
    "$python" tests/gpu/bundle.py join "$parts" "$joined" || [[ $? -eq 1 ]]
fi
# Packages of the parts come before those of the machine: its onnxruntime has no CUDA provider.
export PYTHONPATH="$joined/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" tests/gpu lane --joined "$joined" --work "$work" --record "${OUT:-$work}/record.json" "$@"

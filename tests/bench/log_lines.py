"""A mixed log, the same at each run: servers, JSON, colours, progress bars, and rare losses."""

from __future__ import annotations

import json
import random
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "data" / "fallback_lines.jsonl"
LINES_PER_LOSS = 2000
_PIECES, _PIECE_BYTES = 64, 2 << 20
_TEMPLATES = (
    "2026-11-21 10:{m:02d}:{s:02d}.{n:06d} [I:onnxruntime:, inference_session.cc:{n}] Session up",
    "2026-11-21 10:{m:02d}:{s:02d}.{n:06d} [V:onnxruntime:, session_state.cc:1148] Node placements",
    "[11/21/2026-10:{m:02d}:{s:02d}] [I] [TRT] [MemUsageChange] Init CUDA: CPU +{n}, GPU +0 (MiB)",
    "[11/21/2026-10:{m:02d}:{s:02d}] [V] [TRT] Tactic: 0x{n:016x} Time: 0.{n:04d}",
    "[11/21/2026-10:{m:02d}:{s:02d}] [I] Throughput: {n} qps; min = 1.2 ms, max = {s} ms",
    'INFO:     10.0.{m}.{s}:{n} - "POST /v1/models/unet/infer HTTP/1.1" 200 OK',
    "I1121 10:{m:02d}:{s:02d}.{n:06d} 1 grpc_server.cc:2519] Started service at 0.0.0.0:8001",
    '{{"time":"2026-11-21T10:{m:02d}:{s:02d}Z","level":"INFO","msg":"request done","ms":{n}}}',
    '{{"log":"batch {n} of size {m} finished in {s} ms\\n","stream":"stdout","time":"2026"}}',
    "\x1b[32mINFO\x1b[0m {n} engine.py:{m}] Avg prompt throughput: {n}.3 tokens/s, Running: {m}",
    " {m}%|{s}#####     | {m}/{n} [00:{s:02d}<00:{m:02d}, {m}.{s}it/s]\r",
    "2026-11-21T10:{m:02d}:{s:02d}.{n:09d}Z stderr F worker {m} loaded shard {s} in {n} us",
    'DEBUG urllib3.connectionpool https://storage.example:443 "GET /models/{n} HTTP/1.1" 206 {n}',
    "2026-11-21 10:{m:02d}:{s:02d} WARNING cache miss for key {n:x}; no cached copy found",
)


def write_mixed_log(path: Path, *, size_bytes: int, seed: int = 7) -> None:
    """Write at least `size_bytes`: pieces of random lines, themselves in random order."""
    chance = random.Random(seed)
    losses = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
    count = min(_PIECES, -(-size_bytes // _PIECE_BYTES))
    pieces = [_piece(chance, losses) for _ in range(count)]
    written = 0
    with path.open("wb") as log:
        while written < size_bytes:
            written += log.write(chance.choice(pieces))


def _piece(chance: random.Random, losses: list[str]) -> bytes:
    lines, size = [], 0
    while size < _PIECE_BYTES:
        if chance.randrange(LINES_PER_LOSS) == 0:
            line = chance.choice(losses)
        else:
            m, s, n = chance.randrange(60), chance.randrange(60), chance.randrange(1, 99999)
            line = chance.choice(_TEMPLATES).format(m=m, s=s, n=n)
        lines.append(line.encode() + b"\n")
        size += len(lines[-1])
    return b"".join(lines)

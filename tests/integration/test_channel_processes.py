"""A channel in a directory between real processes: 64 promoters at once, and one that is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from engines.channels.history import PROMOTIONS, history, read_head
from engines.channels.record import key_of_channel
from engines.store.local_store import LocalStore
from planyard.edge import proc
from tests.channel_sites import CHANNEL, images, moved

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES, THREADS, TURNS = 16, 4, 4

PROMOTER = """
import fcntl, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from engines.channels.moves import Mover, promote
from engines.index import snapshots_of_image
from engines.store.local_store import LocalStore
from planyard.core.errors import StoreError

root, gate, channel, number, threads, turns, *images = sys.argv[1:]
store = LocalStore(Path(root))
mover = Mover(by=f"process {number}", now="2026-11-21T18:00:00Z")

def work(thread):
    said = []
    for turn in range(int(turns)):
        image = images[(int(number) * 7 + thread * 3 + turn) % len(images)]
        try:
            move = promote(store, channel, image, mover=mover)
        except StoreError as error:
            said.append(f"lost {error.exit_code}")
        else:
            said.append(f"won {move.now.entry}" if move.moved else "same")
    return said

snapshots_of_image(store, images[0])  # msgspec crashes when threads are the first to use a type
print("ready", flush=True)
with open(gate, "rb") as file:
    fcntl.flock(file, fcntl.LOCK_SH)  # the parent lets go of it when all are ready
with ThreadPoolExecutor(int(threads)) as pool:
    for said in pool.map(work, range(int(threads))):
        print("\\n".join(said), flush=True)
"""

STUCK = """
import sys, threading
from pathlib import Path
from engines.channels.moves import Mover, promote
from engines.store.local_store import LocalStore

store = LocalStore(Path(sys.argv[1]))
def stuck(*args, **options):
    print("written", flush=True)
    threading.Event().wait()
store.objects.move_pointer = stuck
promote(store, sys.argv[2], sys.argv[3], mover=Mover(by="killed", now="2026-11-21T18:00:00Z"))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    args = [sys.executable, "-c", script, *map(str, arguments)]
    return proc.start(args, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_64_promoters_at_once_lose_nothing(tmp_path: Path) -> None:
    store, gate = LocalStore(tmp_path / "store"), tmp_path / "gate"
    targets = images(store, 8)
    with gate.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        promoters = [
            start(PROMOTER, store.root, gate, CHANNEL, number, THREADS, TURNS, *targets)
            for number in range(PROCESSES)
        ]
        assert [line_of(each) for each in promoters] == ["ready"] * PROCESSES
    said = [each.communicate(timeout=300)[0].decode().split("\n") for each in promoters]
    assert [each.returncode for each in promoters] == [0] * PROCESSES, said
    lines = [line for each in said for line in each if line]
    won = [line.removeprefix("won ") for line in lines if line.startswith("won ")]
    lost = [line for line in lines if line == "lost 8"]
    same = [line for line in lines if line == "same"]
    assert len(won) + len(lost) + len(same) == PROCESSES * THREADS * TURNS
    print(f"{len(won)} won, {len(lost)} lost, {len(same)} had nothing to do")
    head = read_head(store, CHANNEL)
    assert head is not None
    states = list(history(store, head.state))
    assert {state.entry for state in states} == set(won)
    assert [state.version for state in states] == list(range(len(won), 0, -1))
    assert lost, "nobody met anybody"
    written = list(store.entries(PROMOTIONS, key_of_channel(CHANNEL)))
    assert len(written) == len(won) + len(lost)
    assert not list((store.root / "channels").glob(".stable*"))


def test_a_promoter_killed_before_the_pointer_moves_leaves_the_channel(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    a, b = images(store, 2)
    moved(store, a)
    killed = start(STUCK, store.root, CHANNEL, b)
    assert line_of(killed) == "written"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    head = read_head(store, CHANNEL)
    assert head is not None
    assert (head.state.version, head.state.image) == (1, a)
    assert len(list(store.entries(PROMOTIONS, key_of_channel(CHANNEL)))) == 2
    moved(store, b)
    head = read_head(store, CHANNEL)
    assert head is not None
    assert (head.state.version, head.state.by) == (2, "ann@desk")

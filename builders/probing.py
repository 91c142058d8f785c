"""What is really inside an image: its libraries' own versions, and the devices it sees."""

from __future__ import annotations

import msgspec

from builders.image import load_image
from builders.workspace import Workspace
from engines.snapshot import DeviceReport, VersionFound
from planyard.core.digest import digest_of_value
from planyard.core.results import ImageRecord
from planyard.edge import files
from planyard.edge.docker import Container, Mount
from planyard.edge.gpu import local_gpus
from smoke.job import INSIDE

_PROBES = "probes"
_SCRIPT = INSIDE / "probe.py"
_MEMORY_BYTES = 4 << 30
_SECONDS = 120


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `smoke/inside/probe.py` prints."""

    schema: int = 1
    versions: dict[str, VersionFound] = {}
    device: DeviceReport = DeviceReport()


def probe_image(
    image: ImageRecord, *, python: str, workspace: Workspace, reference: str = ""
) -> ProbeReport:
    """Ask an image, once for each image, script and set of GPUs.

    `reference` is the engine's, when the image is there already; else it is loaded from the store.

    An image that cannot answer (no interpreter at `python`) gives an empty report: nothing found is
    recorded as nothing, never as the pins.
    """
    gpus = local_gpus()
    key = digest_of_value(
        {
            "image": image.digest,
            "script": files.digest_of_file(_SCRIPT),
            "python": python,
            "gpus": [(gpu.sm, gpu.driver) for gpu in gpus],
        }
    )
    for document in workspace.store.entries(_PROBES, key):
        return msgspec.json.decode(document, type=ProbeReport)
    container = Container(
        image=reference or load_image(image, workspace=workspace),
        command=(python, "/planyard/probe.py"),
        mounts=(Mount(source=_SCRIPT, target="/planyard/probe.py"),),
        memory_bytes=_MEMORY_BYTES,
        timeout_seconds=_SECONDS,
        gpu=bool(gpus) and workspace.engine().has_gpu_runtime(),
    )
    with workspace.outside.running():
        ended = workspace.engine().run(container)
    try:
        report = msgspec.json.decode(ended.stdout, type=ProbeReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        workspace.console.warn(
            f"{image.name} could not be probed (exit {ended.exit_code}): {said[-1:] or 'silent'}"
        )
        return ProbeReport()
    workspace.store.put_entry(_PROBES, key, msgspec.json.encode(report))
    return report

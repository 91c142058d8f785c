"""The version gate: the libraries in the process's memory are the versions that are pinned.

What a library says of itself counts; names and metadata of packages do not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from planyard.core.findings import Finding
from planyard.core.matrix import Backend, Pins
from planyard.core.results import LoadedLibrary, SmokeRun

GATE = "versions"
NEEDED: Mapping[Backend, tuple[str, ...]] = {
    "onnxruntime-cpu": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime", "cuda"),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
}
"""Libraries that a backend cannot do its work without. TensorRT for RTX links CUDA statically."""
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")  # of a release: no .dev1, no rc1, no +cu130
_CUDNN_PARTS = 3  # cudnnGetVersion() says 92800 of 9.28.0.42


def pins_to_check(
    backend: Backend, pins: Pins, *, own_command: bool = False
) -> tuple[Mapping[str, str], Collection[str]]:
    """The pins by the names of `SmokeReport.loaded`, and which of them have to be loaded.

    Every pinned library that is loaded is checked, whatever the backend. Python has to be there
    where planyard's own script ran; an image's own command may be no Python at all. Of cuDNN's
    version only the parts that the library can say are kept.
    """
    by_name = {
        "onnxruntime": pins.onnxruntime.version,
        "cuda": pins.cuda,
        "cudnn": ".".join(pins.cudnn.split(".")[:_CUDNN_PARTS]),
        "tensorrt": pins.tensorrt,
        "tensorrt_rtx": pins.tensorrt_rtx,
        "python": pins.python,
    }
    return by_name, NEEDED[backend] if own_command else (*NEEDED[backend], "python")


def check_versions(
    run: SmokeRun, *, pins: Mapping[str, str], needed: Collection[str]
) -> tuple[Finding, ...]:
    """Findings for each loaded library that is not the pinned version, or is needed and absent.

    A version fits a pin when it begins with all of the pin's parts: "13.0.2" fits "13.0", "1.31.10"
    does not fit "1.31.1". Libraries that are neither pinned nor needed are not looked at.
    """
    loaded = run.report.loaded if run.report else {}
    if not loaded:
        return (_finding(run, "no-evidence", "the run did not report which libraries it loaded"),)
    found = []
    for name in sorted(set(needed) - loaded.keys()):
        others = ", ".join(sorted(loaded))
        found.append(_finding(run, "not-loaded", f"{name} was not loaded, only {others}"))
    for name in sorted(loaded.keys() & {*pins, *needed}):
        library, pin = loaded[name], pins.get(name, "")
        if not _VERSION.match(library.version):
            message = f"{_called(name, library)} does not say its version, but {library.version!r}"
            found.append(_finding(run, "unreadable", message))
        elif not _fits(library.version, pin):
            message = f"{_called(name, library)} is {library.version}, {pin or 'nothing'} is pinned"
            found.append(_finding(run, "differs", message))
    return tuple(found)


def _fits(version: str, pin: str) -> bool:
    parts = pin.split(".")
    return bool(_VERSION.fullmatch(version)) and version.split(".")[: len(parts)] == parts


def _called(name: str, library: LoadedLibrary) -> str:
    return f"{name} ({library.path})" if library.path else name


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)

"""GPU code against the SMs that the cells ask for: too much of it, too little, or only PTX."""

from __future__ import annotations

from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.facts.gpu_targets import number_of, runs_on
from builders.audit.rules.asked import Asked
from builders.audit.rules.found import Found, Place
from planyard.core.contents import GpuCode

WORTH_SAYING_BYTES = 1_000_000
_Libraries = dict[str, GpuCode]


def find_gpu_code(contents: ImageContents, asked: Asked) -> Iterator[Found]:
    """What runs nowhere, then for each SM what cannot run or only by way of the driver."""
    if asked.sms is None:
        return
    libraries = {path: elf.gpu for path, elf in contents.elf_files.items() if elf.gpu}
    yield _unused(libraries, asked.sms)
    for sm in sorted(asked.sms):
        yield from _too_little(libraries, sm)


def _unused(libraries: _Libraries, sms: frozenset[int]) -> Found:
    targets: set[str] = set()
    places = []
    for path, code in libraries.items():
        idle = {
            name: size
            for name, size in code.sizes.items()
            if not any(runs_on(name, sm) for sm in sms)
        }
        if idle:
            targets |= idle.keys()
            of_all = f"of {code.code_bytes / 1e6:,.1f} MB"
            places.append(Place(path, sum(idle.values()), _listed(set(idle)) + f", {of_all}"))
    asked = ", ".join(map(str, sorted(sms)))
    whose = f"no cell asks for (they ask for SM {asked})" if sms else "no cell of it has a GPU for"
    sure = all(code.sure for code in libraries.values())
    how = "counted from all headers" if sure else "at least: some headers could not be read"
    return Found(
        rule="gpu-code-unused",
        message=f"{{size}} of GPU code for {_listed(targets)} in {{files}} that {whose}; {how}",
        places=tuple(places),
        least_bytes=WORTH_SAYING_BYTES,
    )


def _too_little(libraries: _Libraries, sm: int) -> Iterator[Found]:
    """Libraries without any machine code for an SM; those with PTX for it apart."""
    nothing: list[tuple[Place, bool]] = []
    only_ptx = []
    for path, code in libraries.items():
        fitting = [name for name in code.sizes if runs_on(name, sm)]
        if any(name.startswith("sm_") for name in fitting):
            continue
        place = Place(path, code.code_bytes, f"has {_listed(set(code.sizes)) or 'none read'}")
        if fitting:
            only_ptx.append(place)
        else:
            nothing.append((place, code.sure))
    # What is sure fails; elsewhere there may be code that could not be read.
    yield Found(
        rule="gpu-code-missing",
        message=f"no GPU code that runs on SM {sm} in {{files}} with code for others",
        places=tuple(place for place, sure in nothing if sure),
    )
    yield Found(
        rule="gpu-code-missing",
        severity="warn",
        message=f"no GPU code for SM {sm} seen in {{files}}, but not all of it could be read",
        places=tuple(place for place, sure in nothing if not sure),
    )
    yield Found(
        rule="gpu-code-jit",
        message=f"only PTX for SM {sm}, which the driver has to compile, in {{files}}",
        places=tuple(only_ptx),
    )


def _listed(targets: set[str]) -> str:
    return ", ".join(sorted(targets, key=lambda name: (name[0] == "c", number_of(name), name)))

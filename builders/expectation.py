"""What an image expects of the machine it starts on, baked into it for `images/admit.py`.

An image whose Dockerfile stage copies `planyard-admission/…` is given files there: `admit.py`,
which lies beside its context's other files, and `expect.json`, made here from the matrix: backend,
pins, the SMs of its cells, the packages of its lock, and what the image says under `admission`; and
`session.json` (docs/sessions.md) where the stage copies that. All are part of the image's recipe.
Every check is `on`, or `off` with a reason that ends up in the capability snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from builders.wheels import Requirement
from planyard.core.cells import Cell
from planyard.core.compat import pinned_version
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Image, Matrix, Pins
from planyard.core.matrix_smoke import ADMISSION_CHECKS, AdmissionCheck, AdmissionSpec
from planyard.edge import files
from smoke.session import TENSORRT, providers_of

EXPECTATION_SCHEMA = 1
ADMISSION_FOLDER = "planyard-admission"
_ADMIT = "admit.py"
_EXPECT = "expect.json"
SESSION = "session.json"
_RUN = "run"  # an empty folder, for the snapshot and the metric
# Larger plans would make the start wait for their digest: 64 MiB take about 50 ms.
DIGEST_LIMIT_BYTES = 64 << 20

# Wheels that install files under the import name `onnxruntime`: the last one installed wins.
_ONNXRUNTIMES = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    *("onnxruntime-qnn", "onnxruntime-training"),
)
_RUNTIME_PACKAGE = {"onnxruntime-cpu": "onnxruntime", "onnxruntime-cuda": "onnxruntime-gpu"}
_GPU_CHECKS: tuple[AdmissionCheck, ...] = (
    *("toolkit", "devices", "driver", "cuda"),
    *("gpu", "sm", "memory", "mig"),
)
_SNAPSHOT = "/run/planyard/capability.json"
_METRICS = "/run/planyard/planyard.prom"


class PlanExpected(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that lies in the image: `sha256` is 64 hex digits, `sms` those it was made for."""

    path: str
    size_bytes: int
    sha256: str
    sms: tuple[int, ...]
    verify: str


def expect_plan(path: str, *, digest: str, size_bytes: int, sms: Sequence[int]) -> PlanExpected:
    """A plan to be looked at when the image starts: by its digest, or by its header if large."""
    return PlanExpected(
        path=path,
        size_bytes=size_bytes,
        sha256=digest.removeprefix("sha256:"),
        sms=tuple(sms),
        verify="header" if size_bytes > DIGEST_LIMIT_BYTES else "digest",
    )


class DriverExpected(msgspec.Struct, frozen=True, kw_only=True):
    """A driver branch; newer ones run what older ones do, but plans compiled on a GPU know it."""

    branch: int
    newer: bool


class ProviderExpected(msgspec.Struct, frozen=True, kw_only=True):
    """An execution provider and the files it cannot work without, below a site folder."""

    name: str
    files: tuple[str, ...] = ()


class PlansExpected(msgspec.Struct, frozen=True, kw_only=True):
    """Which plans can be served, and those that are in the image."""

    kind: str
    version: str
    files: tuple[PlanExpected, ...] = ()


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """`/etc/planyard/expect.json`; docs/admission.md describes each field."""

    schema: int = EXPECTATION_SCHEMA
    image: str
    backend: str
    checks: dict[str, str]
    driver: DriverExpected
    cuda: str
    sms: tuple[int, ...]
    free_bytes: int
    mig: str
    site: tuple[str, ...]
    packages: dict[str, str]
    rivals: tuple[str, ...]
    libraries: tuple[str, ...]
    provider: ProviderExpected
    plans: PlansExpected
    snapshot: str
    metrics: str
    gpu_seconds: int

    def to_json(self) -> bytes:
        """The bytes that are baked into the image."""
        return canonical_json(msgspec.to_builtins(self)) + b"\n"


def expectation_of(
    name: str,
    *,
    matrix: Matrix,
    cells: Sequence[Cell],
    wheels: Sequence[Requirement] = (),
    plans: Sequence[PlanExpected] = (),
) -> Expectation:
    """What the image `name` expects.

    `cells` are all of the matrix, `wheels` those of the image's lock, `plans` those that lie in it.
    """
    spec, pins = matrix.images[name], matrix.pins
    said, packages, provider = spec.admission, _packages(spec, pins, wheels), _provider(spec)
    libraries = _libraries(spec, pins)
    reasons: dict[AdmissionCheck, str] = {
        **_reasons(spec, packages=packages, libraries=libraries, provider=provider),
        **said.skip,
    }
    return Expectation(
        image=name,
        backend=spec.backend,
        checks={
            check: f"off: {reasons[check]}" if check in reasons else "on"
            for check in ADMISSION_CHECKS
        },
        # A plan of classic TensorRT is compiled on a GPU, under one driver branch.
        driver=DriverExpected(branch=int(pins.driver), newer=spec.backend != "tensorrt"),
        cuda=pins.cuda,
        sms=tuple(sorted({cell.sm for cell in cells if cell.image == name and cell.sm})),
        free_bytes=int(said.free_memory or 0),
        mig=said.mig or "none",
        site=_site(name, said) or (f"/usr/local/lib/python{pins.python}/dist-packages",),
        packages=packages,
        rivals=tuple(each for each in _ONNXRUNTIMES if each not in packages)
        if spec.backend in _RUNTIME_PACKAGE
        else (),
        libraries=libraries,
        provider=provider,
        plans=PlansExpected(
            kind=spec.backend, version=pinned_version(pins, spec.backend), files=tuple(plans)
        ),
        snapshot=_SNAPSHOT,
        metrics=_METRICS,
        gpu_seconds=said.gpu_seconds,
    )


def _site(name: str, said: AdmissionSpec) -> tuple[str, ...]:
    """The folders of packages; admission takes no path that goes up, so none is baked in."""
    problems = [
        f"images.{name}.admission.site[{index}]: {folder} goes up: write it without .."
        for index, folder in enumerate(said.site)
        if ".." in folder.split("/")
    ]
    if problems:
        raise InputError(problems)
    return said.site


def _reasons(
    spec: Image,
    *,
    packages: Mapping[str, str],
    libraries: Sequence[str],
    provider: ProviderExpected,
) -> dict[AdmissionCheck, str]:
    """Why checks are off that have nothing to look for."""
    found: dict[AdmissionCheck, str] = {}
    if spec.backend not in GPU_BACKENDS:
        found = dict.fromkeys(_GPU_CHECKS, f"{spec.backend} needs no GPU")
    if not spec.admission.free_memory:
        found.setdefault("memory", "no floor of device memory is set for this image")
    if not spec.admission.mig:
        found.setdefault("mig", "whole GPUs and MIG slices are both accepted")
    if not packages:
        found["packages"] = "the image has no lock that names its packages"
    if not libraries:
        found["libraries"] = f"{spec.backend} brings its libraries in its own package"
    if not provider.files:
        found["provider"] = f"{provider.name} has no library of its own"
    if spec.backend not in PLAN_BACKENDS:
        found["plans"] = f"{spec.backend} serves models, not plans"
    return found


def _packages(spec: Image, pins: Pins, wheels: Sequence[Requirement]) -> dict[str, str]:
    """The packages of the lock; pip is used in a builder stage and never installed."""
    found = {each.name: each.version for each in wheels if each.name != "pip"}
    runtime = _RUNTIME_PACKAGE.get(spec.backend)
    if runtime:
        found.setdefault(runtime, pins.onnxruntime.version)
    return found


def _libraries(spec: Image, pins: Pins) -> tuple[str, ...]:
    """What the backend's own library names in its ELF header, and what it opens at run time."""
    cuda, cudnn = pins.cuda.split(".")[0], pins.cudnn.split(".")[0]
    lean = "_lean" if spec.tensorrt.runtime == "lean" else ""
    named: Mapping[str, tuple[str, ...]] = {
        "onnxruntime-cuda": (
            f"libcublas.so.{cuda}",
            f"libcublasLt.so.{cuda}",
            f"libcudart.so.{cuda}",
            "libcurand.so.10",  # of CUDA 11, 12 and 13
            f"libcudnn.so.{cudnn}",
        ),
        "tensorrt-rtx": (f"libtensorrt_rtx.so.{pins.tensorrt_rtx.split('.')[0]}",),
        "tensorrt": (f"libnvinfer{lean}.so.{pins.tensorrt.split('.')[0]}",),
    }
    needed = list(named.get(spec.backend, ()))
    if TENSORRT in spec.session.providers:  # both are in its provider's ELF header (1.31.1)
        major = pins.tensorrt.split(".")[0]
        needed += [f"libnvinfer.so.{major}", f"libnvonnxparser.so.{major}"]
    return tuple(dict.fromkeys((*needed, *spec.lazy_libraries)))


def _provider(spec: Image) -> ProviderExpected:
    """The provider that is asked first, and the files of all; a plan's backend has none."""
    if spec.backend in PLAN_BACKENDS:
        return ProviderExpected(name=spec.backend)
    folder = "onnxruntime/capi/libonnxruntime_providers_"
    wanted = ("cuda.so", "shared.so") if spec.backend == "onnxruntime-cuda" else ()
    if TENSORRT in spec.session.providers:
        wanted = ("tensorrt.so", *wanted)
    return ProviderExpected(
        name=providers_of(spec.session, spec.backend)[0],
        files=tuple(f"{folder}{each}" for each in wanted),
    )


# How these files get into an image


def wants_admission(stages: str) -> bool:
    """Whether the instructions of an image's stages copy what is made here."""
    return f"{ADMISSION_FOLDER}/" in stages


def refuse_unused(name: str, said: AdmissionSpec, *, target: str) -> None:
    """Raise InputError when a matrix asks for admission, and the stage copies nothing of it."""
    if said != AdmissionSpec():
        copies = f"COPY {ADMISSION_FOLDER}/{_ADMIT} /opt/planyard/{_ADMIT}"
        raise InputError(
            [f"images.{name}.admission: the stage {target} does not copy {ADMISSION_FOLDER}/"],
            mend=f"add {copies} and the lines of docs/admission.md to it, or remove admission:",
        )


def admission_digests(
    expectation: Expectation, *, context: Path, session: bytes | None = None
) -> dict[str, str]:
    """What the image's recipe says of the files that `stage_admission` lays into its context."""
    return {
        f"{ADMISSION_FOLDER}/{name}": f"{digest_of_bytes(data)} 644"
        for name, data in _admission_files(expectation, context, session)
    }


def stage_admission(
    expectation: Expectation, *, context: Path, staged: Path, session: bytes | None = None
) -> None:
    """Lay admit.py, expect.json, session.json and an empty folder into a copy of the context."""
    folder = staged / ADMISSION_FOLDER
    (folder / _RUN).mkdir(parents=True)
    (folder / _RUN).chmod(0o755)
    for name, data in _admission_files(expectation, context, session):
        files.write_bytes(folder / name, data)
        (folder / name).chmod(0o644)


def _admission_files(
    expectation: Expectation, context: Path, session: bytes | None
) -> Iterator[tuple[str, bytes]]:
    try:
        yield _ADMIT, (context / _ADMIT).read_bytes()
    except OSError as error:
        raise InputError(
            [f"{context / _ADMIT}: {error.strerror}; a stage copies {ADMISSION_FOLDER}/{_ADMIT}"],
            mend="copy images/admit.py of planyard into the build context",
        ) from error
    yield _EXPECT, expectation.to_json()
    if session is not None:
        yield SESSION, session

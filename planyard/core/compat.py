"""Compatibility facts, and what they refuse: SMs, CUDA, driver branches, precisions, pins.

The facts are data, each with its source, in `compat.toml` beside this file. They only refuse:
where no fact speaks of a version, nothing is refused. A fact is about the wheels and libraries as
they are published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from planyard.core.matrix import Backend, Pins, Precision

_DATA = Path(__file__).with_name("compat.toml")


class _Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fact speaks of versions from `since` on and below `before`; either may be open."""

    source: str
    since: str = ""
    before: str = ""

    def speaks_of(self, version: str) -> bool:
        """Whether `version` lies in this fact's range."""
        this = _version_key(version)
        return (not self.since or this >= _version_key(self.since)) and (
            not self.before or this < _version_key(self.before)
        )

    @property
    def versions(self) -> str:
        """The range in words: `1.19 up to but not 1.27`."""
        if self.since and self.before:
            return f"{self.since} up to but not {self.before}"
        return f"{self.since} and later" if self.since else f"before {self.before}"


class SmFact(_Fact, frozen=True, kw_only=True):
    """Which SMs a backend's version has code for: a whole list, or bounds."""

    subject: Backend
    sms: tuple[int, ...] = ()
    ptx_sm: int | None = None
    min_sm: int = 0
    max_sm: int | None = None

    def has(self, sm: int) -> bool:
        """Whether there is code for `sm`: in the list, from PTX, or within the bounds."""
        if self.sms:
            return sm in self.sms or (self.ptx_sm is not None and sm >= self.ptx_sm)
        return self.min_sm <= sm and (self.max_sm is None or sm <= self.max_sm)

    @property
    def targets(self) -> str:
        """The SMs in words: `7.5, 8.6, 12.0`."""
        if self.sms:
            listed = ", ".join(dotted(sm) for sm in self.sms)
            return listed + (f", and newer by PTX {dotted(self.ptx_sm)}" if self.ptx_sm else "")
        above = f"{dotted(self.min_sm)} and newer" if self.min_sm else ""
        return above if self.max_sm is None else f"{above} up to {dotted(self.max_sm)}".strip()


class DriverFact(_Fact, frozen=True, kw_only=True):
    """The oldest driver branch that runs CUDA releases in this range."""

    driver: int


class GpuFact(_Fact, frozen=True, kw_only=True):
    """The CUDA releases that know these SMs (`since`, `before`), and their first driver branch."""

    sms: tuple[int, ...]
    driver: int = 0


class BuildFact(_Fact, frozen=True, kw_only=True):
    """What a version of `subject` was built for; an empty field says nothing."""

    subject: str
    cuda: tuple[int, ...] = ()
    cudnn: tuple[int, ...] = ()
    python: tuple[str, ...] = ()


class PrecisionFact(_Fact, frozen=True, kw_only=True):
    """The precisions that these SMs have in a backend's version."""

    subject: Backend
    sms: tuple[int, ...]
    precisions: tuple[Precision, ...]


class Compat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All facts, as `compat.toml` holds them."""

    sm: tuple[SmFact, ...] = ()
    driver: tuple[DriverFact, ...] = ()
    gpu: tuple[GpuFact, ...] = ()
    build: tuple[BuildFact, ...] = ()
    precision: tuple[PrecisionFact, ...] = ()

    def facts(self) -> tuple[_Fact, ...]:
        """Every fact of every kind."""
        return (*self.sm, *self.driver, *self.gpu, *self.build, *self.precision)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why something cannot be: the rule's id, the reason in words, the fact's source."""

    rule: str
    reason: str
    source: str


class Contradiction(msgspec.Struct, frozen=True, kw_only=True):
    """Two pins that cannot both hold: the pin to change, what to write, and the source."""

    pin: str
    message: str
    source: str

    @property
    def key(self) -> str:
        """The key path: `pins.cuda`."""
        return f"pins.{self.pin}"

    @property
    def path(self) -> tuple[str, ...]:
        """The key path in steps, to find its line: `("pins", "cuda")`."""
        return tuple(self.key.split("."))

    def __str__(self) -> str:
        return f"{self.key}: {self.message} ({self.source})"


@cache
def load_compat() -> Compat:
    """The shipped facts, read once."""
    return compat_from_toml(_DATA.read_text(encoding="utf-8"))


def compat_from_toml(text: str) -> Compat:
    """Read facts; raises `tomllib.TOMLDecodeError` or `msgspec.ValidationError`."""
    import tomllib  # noqa: PLC0415 - only whoever asks for facts pays for it

    return msgspec.convert(tomllib.loads(text), Compat)


def dotted(sm: int) -> str:
    """`12.0` for SM 120, as NVIDIA writes a compute capability."""
    return f"{sm // 10}.{sm % 10}"


def pinned_version(pins: Pins, backend: Backend) -> str:
    """The version of `backend` that the pins name."""
    if backend == "tensorrt-rtx":
        return pins.tensorrt_rtx
    return pins.tensorrt if backend == "tensorrt" else pins.onnxruntime.version


def sm_support(compat: Compat, *, backend: Backend, version: str, sm: int) -> SmFact | None:
    """The fact that decides on `sm`: one that refuses it before one that has it, or None.

    Ask the fact itself with `has(sm)`. None means that no fact speaks of this version.
    """
    facts = [fact for fact in compat.sm if fact.subject == backend and fact.speaks_of(version)]
    refusing = (fact for fact in facts if not fact.has(sm))
    return next(refusing, facts[0] if facts else None)


def refusal(
    compat: Compat, pins: Pins, *, backend: Backend, precision: Precision, sm: int
) -> Refusal | None:
    """Why `backend`, at its pinned version, cannot run `precision` on a GPU of `sm`; or None.

    The rules, first hit first: `compat.sm`, `compat.cuda-sm`, `compat.driver-sm`,
    `compat.precision`.
    """
    version = pinned_version(pins, backend)
    fact = sm_support(compat, backend=backend, version=version, sm=sm)
    if fact is not None and not fact.has(sm):
        reason = f"{backend} {version} has no code for SM {dotted(sm)}; it has {fact.targets}"
        return Refusal(rule="compat.sm", reason=reason, source=fact.source)
    return _gpu_refusal(compat, pins, sm) or _precision_refusal(
        compat, version, backend=backend, precision=precision, sm=sm
    )


def _gpu_refusal(compat: Compat, pins: Pins, sm: int) -> Refusal | None:
    """Why the pinned CUDA or driver does not know `sm`."""
    for fact in compat.gpu:
        if sm not in fact.sms:
            continue
        if not fact.speaks_of(pins.cuda):
            reason = f"CUDA {pins.cuda} does not know SM {dotted(sm)}; CUDA {fact.versions} does"
            return Refusal(rule="compat.cuda-sm", reason=reason, source=fact.source)
        if int(pins.driver) < fact.driver:
            reason = f"driver {pins.driver} does not know SM {dotted(sm)}; {fact.driver} does"
            return Refusal(rule="compat.driver-sm", reason=reason, source=fact.source)
    return None


def _precision_refusal(
    compat: Compat, version: str, *, backend: Backend, precision: Precision, sm: int
) -> Refusal | None:
    """Why `precision` is not to be had on `sm`."""
    for fact in compat.precision:
        if fact.subject != backend or sm not in fact.sms or not fact.speaks_of(version):
            continue
        if precision not in fact.precisions:
            reason = f"{backend} {version} has no {precision} on SM {dotted(sm)}"
            return Refusal(rule="compat.precision", reason=reason, source=fact.source)
    return None


def contradictions(
    compat: Compat, pins: Pins, *, backends: Collection[Backend]
) -> tuple[Contradiction, ...]:
    """The pins that cannot hold together; `backends` are those that some image uses.

    Driver against CUDA and cuDNN against CUDA are always judged, a backend's own needs only when
    it is used.
    """
    found = [*_driver_contradictions(compat, pins), *_build_contradictions(compat, pins, "cudnn")]
    for backend in sorted(set(backends)):
        found += _build_contradictions(compat, pins, backend)
    return tuple(found)


def _driver_contradictions(compat: Compat, pins: Pins) -> Iterator[Contradiction]:
    """The pinned driver against the pinned CUDA."""
    for fact in compat.driver:
        if not fact.speaks_of(pins.cuda) or int(pins.driver) >= fact.driver:
            continue
        fits = [older for older in compat.driver if older.driver <= int(pins.driver)]
        instead = f", or a CUDA {_major(fits[-1].since)} release in pins.cuda" if fits else ""
        message = (
            f"driver branch {pins.driver} is too old for CUDA {pins.cuda}: "
            f'write "{fact.driver}" or newer{instead}'
        )
        yield Contradiction(pin="driver", message=message, source=fact.source)


def _build_contradictions(
    compat: Compat, pins: Pins, subject: Backend | Literal["cudnn"]
) -> Iterator[Contradiction]:
    """What the pinned `subject` was built for, against the pinned CUDA, cuDNN and Python."""
    version = pins.cudnn if subject == "cudnn" else pinned_version(pins, subject)
    cuda = _major(pins.cuda)
    for fact in compat.build:
        if fact.subject != subject or not fact.speaks_of(version):
            continue
        if fact.cuda and cuda not in fact.cuda:
            fits = _either(fact.cuda)
            message = (
                f'{subject} {version} is built for CUDA {fits}, and pins.cuda is "{pins.cuda}": '
                f"{_built_for(compat, subject, cuda)}, or a CUDA {fits} release in pins.cuda"
            )
            yield Contradiction(pin=_PINS[subject], message=message, source=fact.source)
        if fact.cudnn and _major(pins.cudnn) not in fact.cudnn:
            fits = _either(fact.cudnn)
            message = f"{subject} {version} needs cuDNN {fits}: write a {fits}.x, not {pins.cudnn}"
            yield Contradiction(pin="cudnn", message=message, source=fact.source)
        if fact.python and pins.python not in fact.python:
            known = ", ".join(f'"{python}"' for python in fact.python)
            message = f"{subject} {version} has no wheel for {pins.python}: write one of {known}"
            yield Contradiction(pin="python", message=message, source=fact.source)


_PINS = {
    "cudnn": "cudnn",
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt": "tensorrt",
    "onnxruntime-cpu": "onnxruntime.version",
    "onnxruntime-cuda": "onnxruntime.version",
}


def _built_for(compat: Compat, subject: str, cuda: int) -> str:
    """Which versions of `subject` to write for CUDA major `cuda`."""
    fits = [fact for fact in compat.build if fact.subject == subject and cuda in fact.cuda]
    if not fits:
        return f"write a {subject} that is built for CUDA {cuda}"
    return "write a version of " + " or of ".join(fact.versions for fact in fits)


def _version_key(version: str) -> tuple[int, ...]:
    """Comparable: `10.0` equals `10`, and `1.10` is after `1.9`."""
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _major(version: str) -> int:
    return int(version.split(".", 1)[0])


def _either(majors: tuple[int, ...]) -> str:
    return " or ".join(str(major) for major in majors)

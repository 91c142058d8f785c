"""A model at another precision: converted in a container of a compiler image, then compared.

The result is kept in the cache under everything it was made from. It is refused, with the figures,
when its outputs are further from fp32 than the matrix allows: no plan is made of it, and nothing
serves it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import engines
from builders.accuracy import check_fp16, check_int8, check_range
from builders.calibration import copy_calibration
from builders.inside import Place, out_folder, run_inside
from builders.models import FetchedModel, identity_of_model
from builders.workspace import Workspace
from engines.recipe import Conversion, recipe_from_inputs
from planyard.core.digest import digest_of_value
from planyard.core.errors import InputError, PlanCompileError
from planyard.core.matrix import Compile, Model, Precision
from planyard.edge import files
from planyard.edge.console import Step
from smoke.inputs import input_shapes, make_inputs, write_inputs

INSIDE = Path(engines.__file__).parent / "inside"
_SCRIPTS = {"fp16": INSIDE / "to_fp16.py", "int8": INSIDE / "to_int8.py"}
_PACKAGES = {
    "fp16": ("numpy", "onnx", "onnxconverter-common", "onnxruntime", "protobuf"),
    "int8": ("ml-dtypes", "numpy", "onnx", "onnxruntime", "protobuf"),
}
_RANGE = INSIDE / "fp16_range.py"
_JOB_SCHEMA = 1
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class ConversionJob:
    """A model to bring to a precision: `name` is the model's in the matrix, `builder` the digest of
    the compiler image; `image` gives its reference in the engine, and loads it there when asked.
    """

    name: str
    model: FetchedModel
    spec: Model
    precision: Precision
    conversion: Conversion
    builder: str
    image: Callable[[], str]
    python: str
    settings: Compile


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """The ONNX file to compile or to serve, and the digest of it with its weights."""

    path: Path
    digest: str


def conversion_of(
    precision: Precision, model: Model, *, packages: Mapping[str, str]
) -> Conversion | None:
    """How a model gets to a precision; None for fp32. `packages` are those of the compiler image.

    Raises InputError for int8 without calibration data, which loading a matrix refuses earlier.
    """
    if precision == "fp32":
        return None
    if precision == "int8" and model.calibration is None:
        raise InputError(["int8 needs calibration data"], mend="add calibration: to the model")
    return Conversion(
        script=files.digest_of_file(_SCRIPTS[precision]),
        packages={name: packages[name] for name in _PACKAGES[precision] if name in packages},
        calibration=model.calibration.sha256 if precision == "int8" and model.calibration else None,
    )


def digest_of_conversion(model: Model, conversion: Conversion, *, builder: str) -> str:
    """What a converted model is kept under: everything it is made from and was compared on."""
    asked = {
        "model": identity_of_model(model),
        "conversion": msgspec.to_builtins(conversion),
        "image": builder,
    }
    if conversion.calibration is not None:
        asked["seeded"] = _seeded_shapes(model)
    return digest_of_value(asked)


def converted_model(
    job: ConversionJob, *, workspace: Workspace, scratch: Path, step: Step | None = None
) -> ConvertedModel:
    """The ONNX file at the job's precision: found in the cache, or converted now, and judged.

    The model as it was fetched when it had that precision already. Raises PlanCompileError when the
    converter or ONNX Runtime refuses the model, or when it is too far from fp32.
    """
    digest = digest_of_conversion(job.spec, job.conversion, builder=job.builder)
    kept = workspace.cache / "converted" / digest.removeprefix("sha256:")
    report = _read_report(kept)
    if report is None:
        if step:
            step.update(f"convert to {job.precision} and compare with fp32")
        report = _convert(job, workspace=workspace, scratch=scratch, kept=kept)
    if report["event"] == "unchanged":
        return ConvertedModel(path=job.model.path, digest=identity_of_model(job.spec))
    if job.precision == "int8":
        check_int8(report, name=job.name, limits=job.spec.tolerance.get("int8"))
    else:
        check_range(_range_report(job, kept, workspace=workspace, scratch=scratch))
        check_fp16(report, name=job.name, limits=job.spec.tolerance.get("fp16"))
    path = kept / str(report["model"])
    return ConvertedModel(path=path, digest=digest_of_value(report["files"]))


def kept_conversion(
    inputs: Mapping[str, Any], model: Model, *, fetched: Path, cache: Path
) -> Path | None:
    """The ONNX file that a plan of this recipe (`PlanRecord.inputs`) was compiled from.

    `fetched` is the model as published, and the answer where nothing was converted; None when what
    was converted is not in the cache any more.
    """
    recipe = recipe_from_inputs(dict(inputs))
    if recipe.conversion is None:
        return fetched
    digest = digest_of_conversion(model, recipe.conversion, builder=recipe.builder_image)
    kept = cache / "converted" / digest.removeprefix("sha256:")
    report = _read_report(kept)
    if report is None:
        return None
    return fetched if report["event"] == "unchanged" else kept / str(report["model"])


def _read_report(kept: Path) -> dict[str, Any] | None:
    """The report of a conversion whose files are all as they were written; else None."""
    try:
        report: dict[str, Any] = json.loads((kept / "report.json").read_bytes())
        whole = all(
            files.digest_of_file(kept / file["name"]) == f"sha256:{file['sha256']}"
            for file in report.get("files", ())
        )
    except (OSError, ValueError):
        return None
    return report if whole else None


def _convert(
    job: ConversionJob, *, workspace: Workspace, scratch: Path, kept: Path
) -> dict[str, Any]:
    out = out_folder(scratch, "converted")
    given = out / "given"
    given.mkdir()
    document = {
        "schema": _JOB_SCHEMA,
        "model": f"/model/{job.model.path.name}",
        "out": "/out",
        "versions": job.conversion.packages,
        **_what_to_compare(job, given, root=workspace.root),
    }
    script, place = _SCRIPTS[job.precision], _place(job, out)
    events, tail = run_inside(script, document, place=place, workspace=workspace)
    report = events[-1] if events else {"event": "failed", "message": "it said nothing"}
    if report["event"] not in ("converted", "unchanged"):
        message = f"the conversion to {job.precision} was refused: {report.get('message')}"
        raise PlanCompileError(message, log_tail=tail)
    shutil.rmtree(given)
    (out / "report.json").write_text(json.dumps(report))
    _keep(out, kept)
    return report


def _range_report(
    job: ConversionJob, kept: Path, *, workspace: Workspace, scratch: Path
) -> dict[str, Any]:
    """What tensors of the fp16 model in `kept` overflow, asked once for each version of the script.

    The comparison of outputs does not show it: on a CPU, ONNX Runtime computes fp16 in fp32.
    """
    asked = digest_of_value({"script": files.digest_of_file(_RANGE), "shapes": _compared(job.spec)})
    path = kept / f"range-{asked.removeprefix('sha256:')}.json"
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    out = out_folder(scratch, "range")
    for file in json.loads((kept / "report.json").read_bytes())["files"]:
        _link_or_copy(kept / file["name"], out / file["name"])
    document = {
        "schema": _JOB_SCHEMA,
        "model": f"/model/{job.model.path.name}",
        "converted": "/out/model.onnx",
        **_compared(job.spec),
    }
    events, tail = run_inside(_RANGE, document, place=_place(job, out), workspace=workspace)
    report = events[-1] if events else {"event": "failed", "message": "it said nothing"}
    if report["event"] != "checked":
        message = f"what overflows in fp16 could not be seen: {report.get('message')}"
        raise PlanCompileError(message, log_tail=tail)
    files.write_bytes(path, json.dumps(report).encode())
    return report


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of it on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _place(job: ConversionJob, out: Path) -> Place:
    return Place(
        image=job.image(),
        python=job.python,
        model=job.model.path.parent,
        out=out,
        memory_bytes=job.settings.memory,
        timeout_seconds=job.settings.timeout_seconds,
    )


def _what_to_compare(job: ConversionJob, given: Path, *, root: Path) -> dict[str, Any]:
    """The part of a job that says on which inputs: shapes for fp16, files for int8."""
    if job.precision == "fp16":
        return _compared(job.spec)
    if job.spec.calibration is None:
        raise InputError(["int8 needs calibration data"], mend="add calibration: to the model")
    copy_calibration(job.spec.calibration, root=root, target=given / "calibration.npz")
    inputs = make_inputs(job.spec.inputs, _seeded_shapes(job.spec))
    seeded: Any = write_inputs(inputs, given)
    for entry in seeded.values():
        entry["file"] = f"/out/{given.name}/{entry['file']}"
    return {"calibration": f"/out/{given.name}/calibration.npz", "seeded": seeded}


def _keep(out: Path, kept: Path) -> None:
    """Move a finished conversion into the cache, which may be another disk."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        out.replace(kept)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with files.scratch_folder(kept.parent, prefix=".work-") as near:
            shutil.copytree(out, near / "files").replace(kept)


def _compared(model: Model) -> dict[str, Any]:
    """The inputs fp16 is compared on: of the profile with the smallest minimum, to spare time."""
    smallest = min(
        model.profiles.values(),
        key=lambda profile: math.prod(math.prod(each.min) for each in profile.values()),
    )
    shapes = {name: list(shapes.min) for name, shapes in smallest.items()}
    return {"shapes": [shapes], "seed": _SEED}


def _seeded_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the smoke run of the smallest profile: its inputs are the seeded ones."""
    every = [input_shapes(model.inputs, profile) for profile in model.profiles.values()]
    return min(every, key=lambda shapes: sum(math.prod(shape) for shape in shapes.values()))

"""Conversions on the host: what is asked of the container, what is kept, and what is refused.

The int8 script really runs, in this process; what the fp16 scripts say is made up, since their
converter is not installed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import conversion
from builders.accuracy import check_fp16, check_int8, check_range
from builders.conversion import (
    ConversionJob,
    ConvertedModel,
    conversion_of,
    converted_model,
    digest_of_conversion,
    kept_conversion,
)
from builders.converted import convert_models, is_converted, needs_converter
from builders.models import fetch_model, identity_of_model
from builders.plan import failure_of
from builders.workspace import Workspace
from engines.recipe import PlanRecipe, recipe_inputs
from engines.store.local_store import LocalStore
from planyard.core.cells import Cell
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, PlanCompileError
from planyard.core.matrix import Compile, Model, Precision, Tolerance
from planyard.edge import files
from planyard.edge.console import Console
from planyard.edge.docker import Container, Ended
from tests import quantized_models as models
from tests.smoke_runs import LocalEngine, ended, host_path
from tests.unit.test_inside_to_int8 import to_int8

NET = models.net().SerializeToString()
BUILDER = "sha256:" + "b" * 64
PACKAGES = {"numpy": "2.4.6", "onnx": "1.23.2", "pip": "26.3", "onnxconverter-common": "1.16.0"}
LIMITS = models.LIMITS


@dataclass(kw_only=True)
class Compiler:
    """A compiler image whose int8 script is the real one; its others say what they are told."""

    says: dict[str, Any] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)

    def __call__(self, container: Container) -> Ended:
        self.containers.append(container)
        name = host_path(container, container.command[1]).name
        job = self._here(
            container, json.loads(host_path(container, container.command[2]).read_bytes())
        )
        events: list[dict[str, Any]] = []
        if name in self.says:
            event = self.says[name]
            events.append(event(job) if callable(event) else event)
        else:
            assert name == "to_int8.py"
            job["versions"] = {}
            try:
                to_int8.run(job, lambda event, **rest: events.append({"event": event, **rest}))
            except to_int8.RefusedError as error:
                events.append({"event": "refused", "message": str(error)})
        return ended(stdout=b"".join(json.dumps(each).encode() + b"\n" for each in events))

    def _here(self, container: Container, value: Any) -> Any:
        """The job with this machine's paths."""
        if isinstance(value, dict):
            return {name: self._here(container, each) for name, each in value.items()}
        inside = isinstance(value, str) and value.startswith(("/model/", "/out", "/job/"))
        return str(host_path(container, value)) if inside else value


@dataclass(kw_only=True)
class Bench:
    """A workspace with one net, its calibration data, and a compiler."""

    root: Path
    compiler: Compiler
    workspace: Workspace
    spec: Model

    def job(self, precision: Precision = "int8", **changes: Any) -> ConversionJob:
        made = conversion_of(precision, self.spec, packages=PACKAGES)
        assert made is not None
        fields: dict[str, Any] = {
            "name": "net",
            "model": fetch_model(
                "net",
                self.spec,
                root=self.root,
                cache=self.workspace.cache,
                network=False,
                report=str,
            ),
            "spec": self.spec,
            "precision": precision,
            "conversion": made,
            "builder": BUILDER,
            "image": lambda: "planyard/compiler:1",
            "python": "/usr/bin/python3",
            "settings": Compile(),
        }
        return ConversionJob(**{**fields, **changes})

    def convert(self, precision: Precision = "int8", **changes: Any) -> ConvertedModel:
        with files.scratch_folder(self.workspace.scratch, prefix="test-") as scratch:
            job = self.job(precision, **changes)
            return converted_model(job, workspace=self.workspace, scratch=scratch)

    @property
    def asked(self) -> list[str]:
        """The scripts that were run, in order."""
        return [host_path(each, each.command[1]).name for each in self.compiler.containers]


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.delenv("PLANYARD_CACHE", raising=False)

    def bench(*, calibration: bytes = models.RIGHT, says: dict[str, Any] | None = None) -> Bench:
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        (folder / "net.onnx").write_bytes(NET)
        (folder / "samples.npz").write_bytes(calibration)
        compiler = Compiler(says=says or {})
        engine: Any = LocalEngine(compiler)
        workspace = Workspace(
            root=tmp_path,
            store=LocalStore(tmp_path / ".planyard" / "store"),
            console=Console(quiet=True),
            may_install=False,
            _engine=engine,
        )
        spec = models.declared(NET, calibration=calibration)
        return Bench(root=tmp_path, compiler=compiler, workspace=workspace, spec=spec)

    return bench


def test_int8_is_converted_once_and_found_again(make: Make) -> None:
    bench = make()
    first = bench.convert()
    assert digest_of_bytes(first.path.read_bytes()) != bench.spec.sha256
    assert first.path.is_relative_to(bench.workspace.cache / "converted")
    assert bench.convert() == first
    assert bench.asked == ["to_int8.py"]
    # Nothing of what was handed over is kept beside the model.
    assert {each.name for each in first.path.parent.iterdir()} == {"model.onnx", "report.json"}


def test_the_model_a_plan_was_made_from_is_found_by_its_recipe(make: Make) -> None:
    bench = make()
    job = bench.job()
    recipe = PlanRecipe(
        model=identity_of_model(bench.spec),
        backend="tensorrt",
        version="11.2.1.2",
        builder_image=BUILDER,
        script=BUILDER,
        sm_targets=(90,),
        profile={},
        precision="int8",
        workspace_bytes=1,
        conversion=job.conversion,
    )

    def kept(changed: PlanRecipe) -> Path | None:
        inputs, fetched = recipe_inputs(changed), job.model.path
        cache = bench.workspace.cache
        return kept_conversion(inputs, bench.spec, fetched=fetched, cache=cache)

    assert kept(recipe) is None
    converted = bench.convert()
    assert kept(recipe) == converted.path
    assert kept(msgspec.structs.replace(recipe, conversion=None)) == job.model.path
    assert kept(msgspec.structs.replace(recipe, builder_image="sha256:" + "c" * 64)) is None
    converted.path.write_bytes(b"damaged")
    assert kept(recipe) is None


def test_a_kept_model_that_was_damaged_is_made_again(make: Make) -> None:
    bench = make()
    first = bench.convert()
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert bench.convert() == first
    assert first.path.read_bytes() == whole
    assert len(bench.asked) == 2


@pytest.mark.parametrize("name", models.WRONG)
def test_calibration_on_wrong_data_is_refused_with_the_figures(make: Make, name: str) -> None:
    bench = make(calibration=models.WRONG[name])
    with pytest.raises(
        PlanCompileError, match=r"int8 is too far from fp32 in \d of 5 comp"
    ) as caught:
        bench.convert()
    assert "tolerance.int8" in caught.value.mend
    assert len(caught.value.log_tail) == 5
    assert "seeded inputs: y: max_abs 2." in caught.value.log_tail[-1]
    # Not converted again to say the same, and good enough when the matrix says so.
    loose = Tolerance(max_abs=1e9, mean_abs=1e9)
    spec = msgspec.structs.replace(bench.spec, tolerance={"int8": loose})
    assert bench.convert(spec=spec).path.exists()
    assert bench.asked == ["to_int8.py"]


def test_samples_held_out_alone_would_pass_data_that_is_all_zero(make: Make) -> None:
    bench = make(calibration=models.WRONG["zeros"])
    with pytest.raises(PlanCompileError) as caught:
        bench.convert()
    *held_out, seeded = caught.value.log_tail
    assert all("max_abs 0 " in line for line in held_out)
    assert "max_abs 0 " not in seeded


def test_calibration_that_changed_after_the_matrix_was_read_is_refused(make: Make) -> None:
    bench = make()
    (bench.root / "models/samples.npz").write_bytes(models.WRONG["zeros"])
    with pytest.raises(IntegrityError, match=r"samples\.npz has changed"):
        bench.convert()
    assert bench.asked == []


def test_other_calibration_another_builder_or_size_is_another_conversion(make: Make) -> None:
    bench = make()
    job = bench.job()

    def digest(**changes: Any) -> str:
        fields = {
            "model": job.spec,
            "conversion": job.conversion,
            "builder": job.builder,
            **changes,
        }
        return digest_of_conversion(fields.pop("model"), fields.pop("conversion"), **fields)

    other = msgspec.structs.replace(job.conversion, calibration="sha256:" + "1" * 64)
    profile = {"x": msgspec.structs.replace(job.spec.profiles["16"]["x"], opt=(2, 3, 16, 16))}
    found = {
        digest(),
        digest(conversion=other),
        digest(builder="sha256:" + "c" * 64),
        digest(model=msgspec.structs.replace(job.spec, profiles={"16": profile})),
        digest(model=msgspec.structs.replace(job.spec, sha256="sha256:" + "2" * 64)),
    }
    assert len(found) == 5


def test_the_container_is_limited_as_for_plans_and_sees_the_model_read_only(make: Make) -> None:
    bench = make()
    bench.convert(settings=Compile(memory=5 << 30, timeout_seconds=77))  # type: ignore[arg-type]
    [container] = bench.compiler.containers
    assert (container.memory_bytes, container.timeout_seconds) == (5 << 30, 77)
    writable = {each.target for each in container.mounts if each.writable}
    assert writable == {"/out"}


def test_what_the_conversion_depends_on_is_in_its_recipe(make: Make) -> None:
    spec = make().spec
    assert conversion_of("fp32", spec, packages=PACKAGES) is None
    fp16 = conversion_of("fp16", spec, packages=PACKAGES)
    int8 = conversion_of("int8", spec, packages=PACKAGES)
    assert fp16 is not None
    assert int8 is not None
    assert spec.calibration is not None
    assert fp16.calibration is None
    assert int8.calibration == spec.calibration.sha256
    assert set(fp16.packages) == {"numpy", "onnx", "onnxconverter-common"}
    assert set(int8.packages) == {"numpy", "onnx"}
    assert fp16.script == files.digest_of_file(conversion.INSIDE / "to_fp16.py")
    assert int8.script == files.digest_of_file(conversion.INSIDE / "to_int8.py")


def test_int8_without_calibration_data_or_limits_goes_nowhere(make: Make) -> None:
    bench = make()
    without = msgspec.structs.replace(bench.spec, calibration=None)
    with pytest.raises(InputError, match="calibration data"):
        conversion_of("int8", without, packages=PACKAGES)
    no_limits = msgspec.structs.replace(bench.spec, tolerance={})
    with pytest.raises(InputError, match="accuracy it must keep"):
        bench.convert(spec=no_limits)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "refused", "message": "no"}, "the conversion to int8 was refused: no"),
        ({"event": "failed", "message": "KeyError"}, "was refused: KeyError"),
    ],
)
def test_a_refusal_is_told_in_the_scripts_words_and_not_kept(
    make: Make, event: dict[str, Any], said: str
) -> None:
    bench = make(says={"to_int8.py": event})
    for _ in range(2):
        with pytest.raises(PlanCompileError, match=said):
            bench.convert()
    assert len(bench.asked) == 2


def test_a_script_that_says_nothing_has_failed(make: Make) -> None:
    bench = make()
    bench.workspace._engine = LocalEngine(lambda _: ended(stdout=b"a line\n"))  # type: ignore[assignment]
    with pytest.raises(PlanCompileError, match="it said nothing"):
        bench.convert()


# fp16


def fp16_event(job: dict[str, Any]) -> dict[str, Any]:
    """What to_fp16.py says of a model that it converted well."""
    (Path(job["out"]) / "model.onnx").write_bytes(b"fp16")
    file = {"name": "model.onnx", "sha256": digest_of_bytes(b"fp16")[7:], "size_bytes": 4}
    output = {"name": "y", "max_abs": 0.001, "mean_abs": 0.0001, "nan": 0, "inf": 0}
    comparisons = [{"inputs": "noise", "outputs": [output]}]
    return {
        "event": "converted",
        "model": "model.onnx",
        "files": [file],
        "comparisons": comparisons,
    }


FINE = {"event": "checked", "tensors": 5, "count": 0, "overflows": []}
OVERFLOW = {"tensor": "c1", "operator": "Conv", "largest": 92160.4, "inputs": "noise"}


def test_fp16_is_asked_for_overflows_once(make: Make) -> None:
    seen: list[dict[str, Any]] = []

    def look(job: dict[str, Any]) -> dict[str, Any]:
        seen.append(job)
        assert Path(job["converted"]).read_bytes() == b"fp16"
        return FINE

    bench = make(says={"to_fp16.py": fp16_event, "fp16_range.py": look})
    first = bench.convert("fp16")
    assert bench.convert("fp16") == first
    assert bench.asked == ["to_fp16.py", "fp16_range.py"]
    assert seen[0]["shapes"] == [{"x": [1, 3, 16, 16]}]


def test_fp16_that_overflows_is_refused_every_time(make: Make) -> None:
    told = {**FINE, "count": 2, "overflows": [OVERFLOW, {**OVERFLOW, "tensor": "r1"}]}
    bench = make(says={"to_fp16.py": fp16_event, "fp16_range.py": told})
    said = r"fp16 overflows: c1, made by Conv, reaches 92,160 .* ends at 65,504; .* overflow: 2"
    for _ in range(2):
        with pytest.raises(PlanCompileError, match=said) as caught:
            bench.convert("fp16")
        assert "keep this model in fp32" in caught.value.mend
    assert bench.asked == ["to_fp16.py", "fp16_range.py"]


@pytest.mark.parametrize("event", [{"event": "refused", "message": "no"}, {"event": "failed"}])
def test_fp16_whose_overflows_cannot_be_seen_is_refused(make: Make, event: dict[str, Any]) -> None:
    bench = make(says={"to_fp16.py": fp16_event, "fp16_range.py": event})
    with pytest.raises(PlanCompileError, match="what overflows in fp16 could not be seen"):
        bench.convert("fp16")


def test_a_model_that_is_fp16_already_is_compiled_as_it_was_fetched(make: Make) -> None:
    bench = make(says={"to_fp16.py": {"event": "unchanged"}})
    found = bench.convert("fp16")
    assert found.path == bench.job("fp16").model.path
    assert bench.asked == ["to_fp16.py"]


def test_no_tensors_looked_at_is_no_evidence() -> None:
    with pytest.raises(PlanCompileError, match="no tensor"):
        check_range({**FINE, "tensors": 0})
    check_range(FINE)


# The judgement


def figures(**changes: Any) -> dict[str, Any]:
    close = {
        "name": "y",
        "max_abs": 0.01,
        "mean_abs": 0.001,
        "cosine": 0.9999,
        "psnr_db": 50.0,
        "values": 9,
        "nan": 0,
        "inf": 0,
    }
    return {"comparisons": [{"inputs": "held-out sample 3", "outputs": [{**close, **changes}]}]}


def test_figures_within_their_limits_pass() -> None:
    check_int8(figures(), name="net", limits=LIMITS)
    check_int8(figures(psnr_db=None, max_abs=0.0), name="net", limits=LIMITS)
    check_fp16(figures(), name="net", limits=LIMITS)
    check_fp16(figures(max_abs=9), name="net", limits=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_abs": 0.11}, "largest difference is 0.11, the limit is 0.1"),
        ({"mean_abs": 0.021}, "mean difference is 0.021, the limit is 0.02"),
        ({"cosine": 0.9989}, "cosine is 0.9989, the least is 0.999"),
        ({"psnr_db": 39.9}, "PSNR in dB is 39.9, the least is 40"),
        ({"psnr_db": None}, "PSNR in dB is -inf, the least is 40"),
        ({"nan": 3}, "int8 makes 3 NaN and 0 Inf of y"),
        ({"inf": 1}, "int8 makes 0 NaN and 1 Inf of y"),
    ],
)
def test_each_limit_refuses_alone(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanCompileError) as caught:
        check_int8(figures(**changes), name="net", limits=LIMITS)
    assert said in caught.value.message


def test_int8_that_was_compared_with_nothing_is_refused() -> None:
    with pytest.raises(PlanCompileError, match="on nothing"):
        check_int8({"comparisons": []}, name="net", limits=LIMITS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_abs": 0.11}, "fp16 moves y by 0.11 at most"),
        ({"mean_abs": 0.03}, "0.03 on average"),
        ({"inf": 2}, "fp16 makes 0 NaN and 2 Inf of y"),
    ],
)
def test_fp16_that_moves_too_far_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanCompileError) as caught:
        check_fp16(figures(**changes), name="net", limits=LIMITS)
    assert said in caught.value.message


def test_the_worst_comparison_is_the_one_that_is_told() -> None:
    report = {
        "comparisons": [
            {"inputs": inputs, **figures(max_abs=size)["comparisons"][0] | {"inputs": inputs}}
            for inputs, size in (("held-out sample 3", 0.2), ("seeded inputs", 0.9), ("last", 0.3))
        ]
    }
    with pytest.raises(PlanCompileError, match="in 3 of 3 comparisons; the worst: y, seeded inp"):
        check_int8(report, name="net", limits=LIMITS)


# Cells that ONNX Runtime serves


def cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "id": "ort-cpu/net/16/int8/cpu",
        "image": "ort-cpu",
        "model": "net",
        "profile": "16",
        "precision": "int8",
        "gpu": "cpu",
        "sm": None,
        "backend": "onnxruntime-cpu",
    }
    return Cell(**{**fields, **changes})


def test_only_onnx_at_another_precision_is_converted() -> None:
    assert is_converted(cell())
    assert is_converted(cell(precision="fp16", backend="onnxruntime-cuda"))
    assert not is_converted(cell(precision="fp32"))
    assert not is_converted(cell(backend="tensorrt-rtx"))
    assert needs_converter("ort-cpu", [cell(precision="fp32"), cell()])
    assert not needs_converter("ort-cpu", [cell(precision="fp32"), cell(image="other")])


def test_cells_share_a_conversion_and_a_refusal_ends_each_of_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    asked: list[str] = []

    def convert(job: ConversionJob, **_: Any) -> ConvertedModel:
        asked.append(job.name)
        if job.precision == "fp16":
            raise PlanCompileError("too far", mend="do something")
        return ConvertedModel(path=job.model.path, digest="sha256:" + "3" * 64)

    monkeypatch.setattr("builders.converted.converted_model", convert)
    matrix: Any = SimpleMatrix(models={"net": bench.spec}, images={"ort-cpu": SimpleImage()})
    compilers: Any = {"ort-cpu": (SimpleOrder(), SimpleRecord())}
    cells = [
        *(cell(id=f"a{n}", profile=str(n)) for n in range(3)),
        *(cell(id=f"b{n}", precision="fp16") for n in range(2)),
        cell(id="c", precision="fp32"),
        cell(id="d", image="not built"),
    ]
    found, failures = convert_models(
        cells,
        matrix=matrix,
        compilers=compilers,
        models={"net": bench.job().model},
        workspace=bench.workspace,
    )
    assert set(found) == {"a0", "a1", "a2"}
    assert [each.cell for each in failures] == ["b0", "b1"]
    assert {each.message for each in failures} == {"too far: do something"}
    assert asked == ["net", "net"]


@dataclass
class SimpleMatrix:
    models: dict[str, Model]
    images: dict[str, Any]
    compile: Compile = field(default_factory=Compile)


@dataclass
class SimpleImage:
    python: str = "/usr/bin/python3"


@dataclass
class SimpleRecord:
    digest: str = BUILDER


@dataclass
class SimpleRecipe:
    wheels: tuple[Any, ...] = ()


@dataclass
class SimpleOrder:
    recipe: SimpleRecipe = field(default_factory=SimpleRecipe)


def test_a_failure_says_what_to_do() -> None:
    error = PlanCompileError("it is wrong", mend="make it right", log_tail=("a", "b"))
    failure = failure_of(cell(), error)
    assert (failure.message, failure.log_tail) == ("it is wrong: make it right", ("a", "b"))
    assert failure_of(cell(), PlanCompileError("it is wrong")).message == "it is wrong"

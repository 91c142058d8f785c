"""An image from its recipe: found in the store, or built, put in normal form and stored.

The recipe is everything an image is made from; its digest is a label of the image. The image's
identity is the digest of its OCI manifest. The build has no network; what it needs is staged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builders.audit.contents import ImageContents
from builders.audit.known_layers import keep_index
from builders.baked import session_to_bake
from builders.base import ResolvedBase
from builders.context import context_digests, copy_context
from builders.dockerfile import stage_text
from builders.expectation import (
    Expectation,
    admission_digests,
    expectation_of,
    refuse_unused,
    stage_admission,
    wants_admission,
)
from builders.oci import store_image
from builders.wheel_streams import WheelStreams
from builders.wheels import Requirement, Wheel, read_lock
from builders.workspace import Workspace
from engines import index
from engines.store.protocol import drain
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.digest import digest_of_value, short
from planyard.core.errors import ImageBuildError, InputError
from planyard.core.matrix import Image, Matrix
from planyard.core.results import ImageRecord
from planyard.core.units import format_bytes
from planyard.edge import files
from planyard.edge.console import Step
from planyard.edge.docker import Engine, EngineError

RECIPE_LABEL = "io.planyard.recipe"
_TITLE_LABEL = "org.opencontainers.image.title"
_NORMAL_FORM = 2  # raised when layers.py or oci.py change the bytes they write

Inspect = Callable[[ImageRecord, str], None]


class ImageRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """All inputs of an image. Paths are relative to the build context."""

    stages: str
    target: str
    files: dict[str, str]
    wheels: tuple[Requirement, ...]
    base: str
    build_args: dict[str, str]
    network: str
    epoch_seconds: int
    normal_form: int = _NORMAL_FORM

    @property
    def digest(self) -> str:
        """The digest of the recipe."""
        return digest_of_value(msgspec.to_builtins(self))


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """An image to make: what the matrix says, resolved against files and bases.

    `name` is the image's own, or its compiler stage's; `session` the session.json baked into it.
    """

    name: str
    spec: Image
    recipe: ImageRecipe
    base: ResolvedBase | None
    python: str
    expectation: Expectation | None = None
    session: bytes | None = None


def order_image(
    name: str, spec: Image, *, matrix: Matrix, workspace: Workspace, compiler: bool = False
) -> ImageOrder:
    """Resolve what an image (or its compiler stage) is made from; bootstraps its base if needed."""
    target = (spec.compiler if compiler else spec.target) or name
    lock = spec.compiler_lock if compiler else spec.lock
    dockerfile = _read(workspace.root, spec.dockerfile)
    base, base_digest = _resolve_base(spec, matrix=matrix, workspace=workspace)
    stages = stage_text(
        dockerfile,
        target=target,
        name=spec.dockerfile,
        arguments={**spec.build_args, **({"BASE": base_digest} if base_digest else {})},
    )
    wheels = read_lock(_read(workspace.root, lock), name=lock) if lock else ()
    context, expectation = workspace.root / spec.context, None
    admission: dict[str, str] = {}
    session = None if compiler else session_to_bake(name, spec, stages=stages, target=target)
    if wants_admission(stages):
        cells = expand(matrix, load_compat()).cells
        expectation = expectation_of(name, matrix=matrix, cells=cells, wheels=wheels)
        admission = admission_digests(expectation, context=context, session=session)
    elif not compiler:
        refuse_unused(name, spec.admission, target=target)
    recipe = ImageRecipe(
        stages=stages,
        target=target,
        files={**context_digests(context), **admission},
        wheels=wheels,
        base=base_digest,
        build_args=spec.build_args,
        network=spec.network,
        epoch_seconds=workspace.epoch_seconds,
    )
    return ImageOrder(
        name=target if compiler else name,
        spec=spec,
        recipe=recipe,
        base=base,
        python=matrix.pins.python,
        expectation=expectation,
        session=session,
    )


def make_image(
    order: ImageOrder, *, workspace: Workspace, inspect: Inspect | None = None
) -> tuple[ImageRecord, bool]:
    """The image of an order, from the store or built now; says whether it was built.

    `inspect` is given a new image's record and the engine's own reference of it while that lives:
    the same files, but for their times, without loading them back from the store.
    """
    stored = index.image_of_recipe(workspace.store, order.recipe.digest)
    if stored is not None:
        return stored, False
    wheels = _fetch_wheels(order, workspace=workspace)
    engine = workspace.engine()
    _import_base(order, engine=engine, workspace=workspace)
    with files.scratch_folder(workspace.scratch, prefix="image-") as scratch:
        step = workspace.console.step(f"build image {order.name}")
        with step as now, workspace.outside.running():
            identifier = _build(
                order, wheels, workspace=workspace, scratch=scratch, on_line=now.update
            )
        with workspace.console.step(f"store image {order.name}") as now:
            try:
                saved = scratch / "saved.tar"
                now.update("take it from the engine")
                with workspace.outside.running():
                    engine.save(identifier, saved)
                record = _store(order, saved, wheels, workspace=workspace, step=now)
                saved.unlink()
                if inspect:
                    inspect(record, identifier)
            finally:
                engine.remove_image(identifier)
    index.put_image(workspace.store, record)
    return record, True


def load_image(record: ImageRecord, *, workspace: Workspace) -> str:
    """The engine's reference of a stored image, loaded from the store when it is not there."""
    engine = workspace.engine()
    tag = f"planyard/{record.name}:{short(record.digest)}"
    if not engine.has_image(tag):
        layout = workspace.store.publish_image_layout(record.digest)
        step = workspace.console.step(f"load image {record.name} into the engine")
        with step, workspace.outside.running():
            try:
                engine.load_layout(layout, tag=tag)
            except EngineError:
                _verify_stored(record, workspace=workspace)
                raise
    return tag


def _verify_stored(record: ImageRecord, *, workspace: Workspace) -> None:
    """Read every blob of an image: a damaged one is the better answer to why it does not load."""
    for digest in index.read_manifest(workspace.store, record.digest).digests:
        drain(workspace.store.open_blob(digest))


def _resolve_base(
    spec: Image, *, matrix: Matrix, workspace: Workspace
) -> tuple[ResolvedBase | None, str]:
    if spec.base is None:
        return None, ""
    base = matrix.bases[spec.base]
    if base.debian is None:
        return None, base.registry or ""
    found = workspace.bases.find(base.debian)
    if found is None:
        workspace.engine()  # installs mmdebstrap where it is missing
        step = workspace.console.step(f"bootstrap base {spec.base}")
        with step as now, workspace.outside.running():
            found = workspace.bases.bootstrap(base.debian, report=now.update)
    return found, found.digest


def _fetch_wheels(order: ImageOrder, *, workspace: Workspace) -> tuple[Wheel, ...]:
    wanted = order.recipe.wheels
    if not wanted:
        return ()
    found = workspace.wheels.find(wanted, python=order.python)
    if found is None:
        step = workspace.console.step(f"fetch {len(wanted)} wheels for {order.name}")
        with step as now, workspace.outside.running():
            found = workspace.wheels.fetch(wanted, python=order.python, report=now.update)
    return found


def _import_base(order: ImageOrder, *, engine: Engine, workspace: Workspace) -> None:
    if order.base and not engine.has_image(order.base.tag):
        engine.import_root(workspace.bases.verified_tar(order.base), tag=order.base.tag)


def _build(
    order: ImageOrder,
    wheels: tuple[Wheel, ...],
    *,
    workspace: Workspace,
    scratch: Path,
    on_line: Callable[[str], None],
) -> str:
    """Run the build and return the identifier of what it made."""
    context = workspace.root / order.spec.context
    dockerfile = workspace.root / order.spec.dockerfile
    if wheels or order.expectation:
        staged = scratch / "context"
        copy_context(context, staged, names=order.recipe.files)
        if wheels:
            workspace.wheels.stage(wheels, staged / "wheels")
        if order.expectation:
            stage_admission(
                order.expectation, context=context, staged=staged, session=order.session
            )
        context = staged
    identifier = scratch / "image-id"
    recipe = order.recipe
    args = ["--file", str(dockerfile), "--target", recipe.target, "--iidfile", str(identifier)]
    args += ["--network", recipe.network, "--label", f"{RECIPE_LABEL}={recipe.digest}"]
    args += ["--label", f"{_TITLE_LABEL}={order.name}"]
    arguments = dict(recipe.build_args)
    if recipe.base:
        arguments["BASE"] = order.base.tag if order.base else recipe.base
    for key, value in arguments.items():
        args += ["--build-arg", f"{key}={value}"]
    workspace.engine().build([*args, str(context)], on_line=on_line)
    if os.environ.get("PLANYARD_SMALL_DISK"):  # before the image is saved: that is the peak
        workspace.engine().prune_builds()
    return identifier.read_text().strip()


def _store(
    order: ImageOrder,
    saved: Path,
    wheels: tuple[Wheel, ...],
    *,
    workspace: Workspace,
    step: Step,
) -> ImageRecord:
    stored = store_image(
        saved,
        store=workspace.store,
        scratch=saved.parent,
        epoch_seconds=workspace.epoch_seconds,
        progress=_counted(step),
        deflated=WheelStreams(workspace.wheels.path(wheel) for wheel in wheels),
    )
    contents = ImageContents(
        image=stored.digest,
        name=order.name,
        config=stored.config,
        layers=stored.indexes,
        created_by=tuple(layer.created_by for layer in stored.layers),
        metadata_bytes=stored.metadata_bytes,
    )
    if not contents.visible:
        raise ImageBuildError(f"the build of {order.name} made an image without files")
    for found in stored.indexes:
        keep_index(workspace.store, found)
    return ImageRecord(
        name=order.name,
        digest=stored.digest,
        recipe=order.recipe.digest,
        pull_bytes=stored.pull_bytes,
        unpacked_bytes=stored.unpacked_bytes,
        layers=stored.layers,
        base=order.base.packages if order.base else (),
    )


def _counted(step: Step) -> Callable[[int], None]:
    """Show how much of an image was compressed so far."""
    done = 0

    def add(size_bytes: int) -> None:
        nonlocal done
        before, done = done, done + size_bytes
        if before >> 24 != done >> 24:  # every 16 MiB
            step.update(f"compressed {format_bytes(done)}")

    return add


def _read(root: Path, name: str) -> str:
    path = root / name
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([f"{name}: cannot be read: {error}"]) from error

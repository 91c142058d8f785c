"""Every command of the README and of the pages in docs/, run with the real product.

The commands of a page run in their order, in a folder of the page's own: an empty one, one where
`planyard init` and `build` have run, or one with the default matrix built. What a page means by its
names, and what has to be there before a command, stands in PAGES; what cannot run here in CANNOT.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from planyard.edge.cosign import Cosign
from tests.conftest import ENGINE, Built
from tests.cosign_fixture import KeyPair
from tests.docs_commands import Shell, blocks_of, commands_of, path_with
from tests.workspaces import REPOSITORY, Site, lay_out, share_store

pytestmark = pytest.mark.docker

LOG_LINE = "Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*"
WAIVED = (
    'planyard promote {channel} {image} --waive not-run --because "run by hand on a GPU" '
    "|| planyard promote {channel} {image}"
)
"""The second for machines with a GPU, where nothing is left to waive."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where a page's commands run. `means` replaces texts; `before` runs ahead of a command.

    In both {rtx}, {cpu}, {image} and {far} are digests, and a store. `ends` are exit codes that the
    page does not say, and `unseen` commands whose shown output is not compared.
    """

    world: Literal["empty", "started", "default"]
    means: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    cosign: bool = False


TO_RTX = WAIVED.format(channel="stable", image="{rtx}")
PAGES = {
    "README.md": Page(
        world="default",
        means={
            "sha256:7783b2e0d711": "{rtx}",
            "sha256:29048df12e7c": "{cpu}",
            "s3://plans/team": "{far}",
            # The third image has 1.3 GB to send, and all this shows nothing that one cell does not.
            "planyard build": "planyard build --select 'rtx/*/640/*' --select 'ort-cpu/*/640/*'",
        },
        before={"planyard promote stable": TO_RTX},
        # Its cells were not run: there is no GPU.
        ends={"planyard verify": (0, 4), "docker logs": (4,)},
        cosign=True,
    ),
    "docs/tutorial.md": Page(world="empty"),
    "docs/capability.md": Page(
        world="default",
        means={"diff A B": "diff {rtx} {rtx}"},
        before={
            "planyard snapshot diff stable": f"{TO_RTX}; planyard promote canary {{cpu}}",
        },
        unseen=("planyard snapshot diff stable",),  # from made-up snapshots, as the page says
    ),
    "docs/channels.md": Page(
        world="default",
        means={"sha256:0123456789ab": "{cpu}"},
        before={
            "planyard promote stable sha256": TO_RTX,
            "planyard promote stable canary": "planyard promote canary {cpu}",
        },
    ),
    "docs/evidence.md": Page(
        world="default",
        means={
            "sha256:0123456789ab": "{cpu}",
            "--gpu l4": "--gpu cpu",
            "ENTRY.json": "$(ls .planyard/store/index/evidence/*/*)",
            "IMAGE_HEX": "$(echo {cpu} | cut -c8-)",
        },
        cosign=True,
    ),
    "docs/load.md": Page(world="default"),
    "docs/report.md": Page(world="default", means={"s3://plans/team": ".planyard/store"}),
    "docs/image-audit.md": Page(
        world="default",
        means={"sha256:49a355102936": "{cpu}"},
        before={"planyard image audit rtx": "planyard promote stable {cpu}"},
        # What it finds is not what this test is about.
        ends={"planyard image audit": (0, 4)},
    ),
    "docs/sbom.md": Page(
        world="default",
        means={"sha256:0123456789ab": "{cpu}", "diff stable rtx": "diff stable {rtx}"},
        before={"planyard image sbom stable": "planyard promote stable {cpu}"},
    ),
    "docs/images.md": Page(
        world="default",
        means={
            "images/locks/rtx.txt tensorrt-rtx-cu13-libs==1.7.1.116": "here.txt packaging==26.3"
        },
    ),
    "docs/how-to/add-a-model.md": Page(
        world="started",
        # The page's own entry, without its first line, goes below `models:`.
        before={
            "planyard cells": "tail -n +2 .docs-state/1.yaml >entry "
            "&& sed -i '/^models:$/r entry' matrix.yaml"
        },
    ),
    "docs/how-to/add-a-gpu.md": Page(world="started"),
    "docs/how-to/own-image.md": Page(world="started"),
    "docs/how-to/lower-the-precision.md": Page(world="started"),
    "docs/how-to/share-a-store.md": Page(
        world="started",
        means={"s3://plans/team": "{far}"},
        before={"planyard lookup stable --pull plans/": "planyard promote stable {image}"},
    ),
    "docs/how-to/sign-and-verify.md": Page(
        world="started",
        means={"sha256:0123456789ab": "{image}"},
        before={"planyard sign": "planyard promote stable {image}"},
        cosign=True,
    ),
    "docs/how-to/promote-and-roll-back.md": Page(
        world="default",
        means={
            "planyard promote stable sha256:fedcba987654 --waive not-run --because "
            '"run by hand on an L4"': TO_RTX,
            "sha256:0123456789ab": "{cpu}",
        },
    ),
    "docs/how-to/serve-in-kubernetes.md": Page(world="default", before={"planyard labels": TO_RTX}),
}
CANNOT = {
    ("docs/image-audit.md", "planyard image audit oci:"): "a layout of somebody else's image",
    ("docs/image-audit.md", "planyard image audit docker-archive:"): "an archive of such an image",
    ("docs/sbom.md", "planyard image sbom docker-archive:"): "an archive of somebody else's image",
    ("docs/sbom.md", "planyard image diff sha256:0123456789ab docker-archive:"): "the same",
    ("docs/images.md", "PIP_EXTRA_INDEX_URL"): "NVIDIA's own index",
    ("README.md", "pip install nox"): "it is this very suite; .ci/run runs both lines' sessions",
    ("CONTRIBUTING.md", ""): "sessions of nox, which .ci/run runs; that they exist is a unit test",
    ("docs/admission.md", "docker run"): "test_ort_gpu_failures.py runs it in the engine",
    ("docs/latency-gate.md", "PLANYARD_LATENCY"): "101 containers: a quarter of an hour",
}


def pages() -> list[str]:
    """Every page with a command."""
    paths = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    paths += sorted((REPOSITORY / "docs").rglob("*.md"))
    return [str(path.relative_to(REPOSITORY)) for path in paths if commands_of(path.read_text())]


def why_not(page: str, text: str) -> str:
    """Why a command of a page cannot run here; empty when it can."""
    found = [
        why for (name, start), why in CANNOT.items() if name == page and text.startswith(start)
    ]
    return found[0] if found else ""


def test_every_page_with_commands_is_run_or_said_not_to_be() -> None:
    for page in pages():
        left = [each for each in commands_of(text_of(page)) if not why_not(page, each.text)]
        assert not left or page in PAGES, f"{page}:{left[0].line}: say in PAGES where it runs"
    assert set(PAGES) <= set(pages())
    for page, start in CANNOT:
        assert any(each.text.startswith(start) for each in commands_of(text_of(page))), (
            page,
            start,
        )


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text()


# The worlds


@pytest.fixture(scope="module")
def programs(session_folder: Path) -> str:
    """The folder of `planyard`, and of a `docker` that has the log of an app."""
    scripts = {
        "planyard": f'exec {sys.executable} -m builders "$@"',
        "docker": f"test \"$1\" = logs && echo '{LOG_LINE}' >&2",
    }
    return path_with(session_folder / "docs-programs", scripts).partition(os.pathsep)[0]


@pytest.fixture(scope="module")
def started(built: Built, session_folder: Path, environment: dict[str, str]) -> Iterator[Site]:
    """A folder after `planyard init` and `planyard build`; its image is in the default store."""
    site = Site(root=session_folder / "docs-started", environment=environment)
    site.root.mkdir()
    share_store(built.site.store.root, site.store.root)
    site.planyard("init").expect(0)
    site.planyard("build").expect(0)
    yield site
    shutil.rmtree(site.root, ignore_errors=True)


@pytest.fixture
def world(
    request: pytest.FixtureRequest, room: Path, environment: dict[str, str]
) -> Callable[[Page], Site]:
    def make(page: Page) -> Site:
        site = Site(root=room / "here", environment=environment)
        if page.world == "default":
            lay_out(site.root, environment=environment)
            share_store(request.getfixturevalue("built").site.store.root, site.store.root)
        elif page.world == "started":
            source: Site = request.getfixturevalue("started")
            ignored = shutil.ignore_patterns(".planyard")
            shutil.copytree(source.root, site.root, ignore=ignored)
            share_store(source.store.root, site.store.root)
        else:
            site.root.mkdir()
        return site

    return make


@pytest.fixture
def shell(
    request: pytest.FixtureRequest, world: Callable[[Page], Site], programs: str, room: Path
) -> Callable[[Page], Shell]:
    def make(page: Page) -> Shell:
        site = world(page)
        variables = site.variables()
        variables["PATH"] = f"{programs}{os.pathsep}{variables['PATH']}"
        if page.cosign:
            variables |= with_cosign(request, site, path=variables["PATH"])
        names = {"far": f"file://{room}/far"}
        if page.world != "empty":
            built: Built = request.getfixturevalue("built")
            names |= {"rtx": built.image("rtx")["digest"], "cpu": built.image("ort-cpu")["digest"]}
            names["image"] = names["cpu"]
        means = {shown: real.format(**names) for shown, real in page.means.items()}
        return Shell(folder=site.root, environment=variables, means=means, names=names)

    return make


def with_cosign(request: pytest.FixtureRequest, site: Site, *, path: str) -> dict[str, str]:
    """What signing needs: the program, a key pair in the folder, its password."""
    program: Cosign = request.getfixturevalue("cosign_program")
    keys: KeyPair = request.getfixturevalue("cosign_keys")
    shutil.copyfile(keys.private, site.root / "cosign.key")
    shutil.copyfile(keys.public, site.root / "cosign.pub")
    first, _, rest = path.partition(os.pathsep)
    return {
        **keys.environment,
        "PLANYARD_SIGN_KEY": "cosign.key",
        "PATH": os.pathsep.join([first, str(Path(program.program).parent), rest]),
    }


# The pages


def write_yaml_blocks(text: str, folder: Path) -> None:
    """The page's blocks of YAML as 1.yaml, 2.yaml, …"""
    folder.mkdir()
    blocks = [lines for _, language, lines in blocks_of(text) if language == "yaml"]
    for number, lines in enumerate(blocks, 1):
        (folder / f"{number}.yaml").write_text("\n".join([*lines, ""]))


def page_params() -> list[Any]:
    """The pages; those that need the default build go where it is (tests/conftest.py)."""
    beside = pytest.mark.xdist_group(ENGINE)
    return [
        pytest.param(name, marks=[] if PAGES[name].world == "empty" else [beside])
        for name in sorted(PAGES)
    ]


@pytest.mark.parametrize("name", page_params())
def test_the_commands_of_a_page_work(name: str, shell: Callable[[Page], Shell]) -> None:
    page = PAGES[name]
    here = shell(page)
    write_yaml_blocks(text_of(name), here.folder / ".docs-state")
    used = set()
    for command in commands_of(text_of(name)):
        if why_not(name, command.text):
            continue
        where = f"{name}:{command.line}: {command.text}"
        for start in [each for each in page.before if command.text.startswith(each)]:
            if start not in used:
                used.add(start)
                assert here.run_as_is(page.before[start].format(**here.names)) == 0, here.said
        code = here.run(command.text)
        expected = next(
            (codes for start, codes in page.ends.items() if command.text.startswith(start)),
            (command.exit_code,),
        )
        assert code in expected, f"{where}\nended with {code}:\n{here.said[-4000:]}"
        if not any(command.text.startswith(each) for each in page.unseen):
            missing = here.missing(command.shown)
            assert not missing, f"{where}\nshows {missing!r}, and it said:\n{here.said[-6000:]}"
    assert used == set(page.before), "before what?"


def test_a_page_that_is_wrong_is_seen(shell: Callable[[Page], Shell]) -> None:
    here = shell(Page(world="empty"))
    assert here.run("planyard cells") == 2
    assert here.run("planyard no-such-verb") == 2
    assert here.run("planyard init") == 0
    assert here.missing(["wrote matrix.yaml"]) == ""
    assert here.missing(["wrote matrix.yml"]) == "wrote matrix.yml"
    assert not re.search("Traceback", here.said)

"""A real cosign for tests, and key pairs made by it.

`--require cosign` builds the pinned one where none is found (about 200 s, once for a cache);
without it such tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from planyard.core.errors import PlanyardError
from planyard.edge import proc
from planyard.edge.cosign import Cosign, find_cosign
from planyard.edge.cosign_flags import CosignError


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A key pair in files, as cosign makes them, and what unlocks the private one."""

    private: Path
    public: Path
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """What signing with it needs."""
        return {"COSIGN_PASSWORD": self.password}


@pytest.fixture(scope="session")
def cosign_program(request: pytest.FixtureRequest) -> Cosign:
    """The cosign of this machine: on the PATH, or in the user's cache."""
    from tests.conftest import do_without

    try:
        return find_cosign()
    except CosignError as error:
        required = ",".join(request.config.getoption("--require"))
        if "cosign" not in required.split(","):
            do_without(request.config, "cosign", f"{error.message} ({error.mend})")
    return build_cosign(request.config)


def build_cosign(config: pytest.Config) -> Cosign:
    """Build it as `planyard setup --with cosign` does."""
    from builders.cosign_setup import ensure_cosign
    from planyard.edge.console import Console
    from tests.conftest import do_without

    try:
        return ensure_cosign(console=Console())
    except PlanyardError as error:
        do_without(config, "cosign", "\n".join([error.message, *error.log_tail]))


@pytest.fixture(scope="session")
def make_key_pair(cosign_program: Cosign) -> Callable[..., KeyPair]:
    """Makes key pairs: `make_key_pair(folder)`, with a password of its own if wanted."""

    def make(folder: Path, *, password: str = "a password") -> KeyPair:
        folder.mkdir(parents=True, exist_ok=True)
        proc.run(
            [cosign_program.program, "generate-key-pair"],
            timeout_seconds=60,
            cwd=folder,
            env={"COSIGN_PASSWORD": password, "HOME": str(folder), "PATH": os.defpath},
        )
        return KeyPair(
            private=folder / "cosign.key", public=folder / "cosign.pub", password=password
        )

    return make


@pytest.fixture(scope="session")
def cosign_keys(
    make_key_pair: Callable[..., KeyPair], tmp_path_factory: pytest.TempPathFactory
) -> KeyPair:
    """One key pair for the session."""
    return make_key_pair(tmp_path_factory.mktemp("cosign-keys"))

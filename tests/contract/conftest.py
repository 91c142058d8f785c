"""The place that a contract is tried on: every test that asks for one runs over all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.object_places import MARKS, PLACES, ObjectPlace


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in PLACES])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectPlace]:
    with PLACES[request.param](tmp_path_factory.mktemp("place")) as found:
        yield found

"""Credentials are found where `docker login` and its relatives keep them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from planyard.core.errors import InputError, StoreError
from planyard.edge.registry_login import Credentials, find_credentials

HOST = "registry.example:5000"


def kept(folder: Path, config: Any, host: str = HOST) -> Credentials | None:
    (folder / "config.json").write_text(json.dumps(config))
    return find_credentials(host, {"DOCKER_CONFIG": str(folder)})


def entry(user: str = "user", password: str = "pass:word") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"https://{HOST}/v1/"])
def test_a_login_is_found(key: str, tmp_path: Path) -> None:
    found = kept(tmp_path, {"auths": {key: entry()}})
    assert found == Credentials(user="user", password="pass:word")
    assert "pass:word" not in repr(found)


def test_the_hub_has_a_key_of_its_own(tmp_path: Path) -> None:
    config = {"auths": {"https://index.docker.io/v1/": entry()}}
    assert kept(tmp_path, config, "docker.io") == Credentials(user="user", password="pass:word")


@pytest.mark.parametrize("key", ["registry.example", "x.registry.example:5000", f"{HOST}/team", ""])
def test_another_registrys_login_is_not_taken(key: str, tmp_path: Path) -> None:
    assert kept(tmp_path, {"auths": {key: entry()}}) is None


@pytest.mark.parametrize(
    "config", [{}, [], {"auths": []}, {"auths": {HOST: {}}}, {"auths": {HOST: 3}}]
)
def test_nobody_logged_in(config: object, tmp_path: Path) -> None:
    assert kept(tmp_path, config) is None


def test_the_home_and_the_named_file(tmp_path: Path) -> None:
    docker = tmp_path / ".docker"
    docker.mkdir()
    (docker / "config.json").write_text(json.dumps({"auths": {HOST: entry("home")}}))
    named = tmp_path / "auth.json"
    named.write_text(json.dumps({"auths": {HOST: entry("named")}}))
    at_home = find_credentials(HOST, {}, tmp_path)
    by_name = find_credentials(HOST, {"REGISTRY_AUTH_FILE": str(named)}, tmp_path)
    assert at_home == Credentials(user="home", password="pass:word")
    assert by_name == Credentials(user="named", password="pass:word")
    assert find_credentials(HOST, {}, tmp_path / "nobody") is None


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json.*is not base64"):
        kept(tmp_path, {"auths": {HOST: {"auth": "%%%"}}})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        find_credentials(HOST, {"DOCKER_CONFIG": str(tmp_path)})


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "docker-credential-box"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


SAYS = 'read host; test "$1" = get && echo "{\\"Username\\": \\"u-$host\\", \\"Secret\\": \\"s\\"}"'


@pytest.mark.parametrize("config", [{"credHelpers": {HOST: "box"}}, {"credsStore": "box"}])
def test_a_program_is_asked(
    config: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, SAYS)
    assert kept(tmp_path, config) == Credentials(user=f"u-{HOST}", password="s")


def test_a_programs_token_refreshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, """echo '{"Username": "<token>", "Secret": "t"}'""")
    found = kept(tmp_path, {"credsStore": "box"})
    assert found == Credentials(user="", password="", refresh_token="t")


def test_a_program_that_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo credentials not found; exit 1")
    assert kept(tmp_path, {"credsStore": "box"}) is None
    program(tmp_path, monkeypatch, "echo nonsense")
    with pytest.raises(StoreError, match="docker-credential-box does not say"):
        kept(tmp_path, {"credsStore": "box"})


@pytest.mark.parametrize("name", ["../box", "box;x", "Box", "", "-box", 3, None, "a" * 64])
def test_only_a_plain_word_is_a_program(name: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the name of a credential program"):
        kept(tmp_path, {"credHelpers": {HOST: name}})


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="docker-credential-no-such-box, not on the PATH"):
        kept(tmp_path, {"credsStore": "no-such-box"})

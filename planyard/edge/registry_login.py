"""Who we are to a registry: credentials as `docker login` keeps them, Basic and Bearer answers.

Credentials go to the registry they were kept for, and to the token server that it names: over
https only, or on this machine when the registry is on it. Which host refused is always said.
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planyard.core.errors import InputError, StoreError
from planyard.core.registry_address import HUB
from planyard.edge import proc
from planyard.edge.registry_http import Connections, Request, origin_of, shown

_HUB_KEY = "https://index.docker.io/v1/"
_CONFIG_LIMIT_BYTES = 4 << 20
_TOKEN_LIMIT_BYTES = 1 << 20
_PROGRAM_SECONDS = 30
_PROGRAM = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CHALLENGE = re.compile(r"(?:^|,\s*)(Bearer|Basic)\s+((?:[\w-]+=\"[^\"]*\"[,\s]*)*)", re.IGNORECASE)
_PAIR = re.compile(r"([\w-]+)=\"([^\"]*)\"")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user and a password; or, with a token for refreshing, no password."""

    user: str
    password: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization header of a Basic answer."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(
    host: str, environment: Mapping[str, str] = os.environ, home: Path | None = None
) -> Credentials | None:
    """What `docker login HOST` kept; None when nobody logged in.

    Looks in the file that REGISTRY_AUTH_FILE names, else in `config.json` in DOCKER_CONFIG or
    `~/.docker`; asks the credential program that is named there. Raises InputError for a file that
    cannot be read.
    """
    path = _config_path(environment, home or Path.home())
    config = _read_config(path)
    keys = [host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    if host == HUB:
        keys.insert(0, _HUB_KEY)
    programs = _mapping(config.get("credHelpers"))
    kept = _mapping(config.get("auths"))
    for key in keys:
        if key in programs:
            return _ask_program(programs[key], key)
    for key in keys:
        found = _from_entry(_mapping(kept.get(key)), path=path, key=key)
        if found:
            return found
    if config.get("credsStore"):
        return _ask_program(config["credsStore"], keys[0])
    return None


def _config_path(environment: Mapping[str, str], home: Path) -> Path:
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    return Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_CONFIG_LIMIT_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        mend = "run `docker login` again"
        raise InputError([f"{path} cannot be read: {error}"], mend=mend) from error
    return _mapping(config)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _from_entry(entry: dict[str, Any], *, path: Path, key: str) -> Credentials | None:
    refresh_token = entry.get("identitytoken")
    if isinstance(refresh_token, str) and refresh_token:
        return Credentials(user="", password="", refresh_token=refresh_token)
    packed = entry.get("auth")
    if not isinstance(packed, str) or not packed:
        return None
    try:
        user, colon, password = base64.b64decode(packed, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        problem = f"{path}: auths.{key}.auth is not base64 of USER:PASSWORD"
        raise InputError([problem], mend="run `docker login` again")
    return Credentials(user=user, password=password)


def _ask_program(name: object, key: str) -> Credentials | None:
    """Ask `docker-credential-NAME`; None when it knows nothing of the registry."""
    if not isinstance(name, str) or not _PROGRAM.fullmatch(name):
        raise InputError([f"{str(name)[:80]!r} is not the name of a credential program"])
    program = proc.find_program(f"docker-credential-{name}")
    if not program:
        message = f"the credentials of {key} are kept by docker-credential-{name}, not on the PATH"
        raise StoreError(message, mend="install it, or run `docker login` without it")
    done = proc.run_unchecked(
        [program, "get"],
        timeout_seconds=_PROGRAM_SECONDS,
        stdin=key.encode(),
        output_limit_bytes=_TOKEN_LIMIT_BYTES,
    )
    if done.exit_code:
        return None
    try:
        said = _mapping(json.loads(done.output))
        user, secret = str(said["Username"]), str(said["Secret"])
    except (ValueError, KeyError, RecursionError) as error:
        message = f"docker-credential-{name} does not say a user and a secret of {key}"
        raise StoreError(message, mend="run `docker login` again") from error
    if user == "<token>":
        return Credentials(user="", password="", refresh_token=secret)
    return Credentials(user=user, password=secret)


class Login:
    """What to authorize with at one registry; may be used from several threads at once."""

    def __init__(
        self,
        connections: Connections,
        *,
        url: str,
        host: str,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._connections = connections
        self._url = url
        self._host = host
        self._environment = environment
        self._headers: dict[str, str] = {}
        self._lock = threading.Lock()

    def header(self, action: str) -> str | None:
        """What was accepted for `action` (pull, push or delete) before."""
        return self._headers.get(action)

    def answer(self, challenge: str, action: str, *, used: str | None) -> str | None:
        """What to send in answer to a challenge; None when there is nothing better than `used`.

        Raises StoreError when the token server refuses, or is none to send credentials to.
        """
        with self._lock:
            known = self._headers.get(action)
            if known and known != used:
                return known  # another thread has asked meanwhile
            credentials = find_credentials(self._host, self._environment)
            challenges = {
                match[1].lower(): dict(_PAIR.findall(match[2]))
                for match in _CHALLENGE.finditer(challenge)
            }
            if "bearer" in challenges:
                header = "Bearer " + self._token(challenges["bearer"], credentials)
            elif "basic" in challenges and credentials and credentials.user:
                header = credentials.basic
            else:
                return None
            self._headers[action] = header
            return None if header == used else header

    def _token(self, challenge: Mapping[str, str], credentials: Credentials | None) -> str:
        """Ask the token server that a challenge names."""
        realm = self._checked_realm(challenge.get("realm", ""))
        asked = {key: challenge[key] for key in ("service", "scope") if challenge.get(key)}
        query = urllib.parse.urlencode(asked)
        authorization = None
        if credentials and credentials.refresh_token:
            form = {
                **asked,
                "grant_type": "refresh_token",
                "client_id": "planyard",
                "refresh_token": credentials.refresh_token,
            }
            content = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urllib.parse.urlencode(form).encode()
            request = Request(method="POST", url=realm, headers=content, body=body)
        else:
            url = realm + ("&" if "?" in realm else "?") + query if query else realm
            request = Request(method="GET", url=url)
            authorization = credentials.basic if credentials else None
        # Redirects are not followed here: they would carry the credentials on.
        answer = self._connections.ask_again(
            request,
            lambda each: self._connections.hop(each, each.url, authorization=authorization).loaded(
                _TOKEN_LIMIT_BYTES
            ),
        )
        if answer.status != 200:
            answer.close()
            kind = "the credentials" if credentials else "a client without credentials"
            message = f"{shown(realm)} refuses {kind} for {self._host} (status {answer.status})"
            raise StoreError(message, mend=f"docker login {self._host}")
        return _token_of(answer.whole(_TOKEN_LIMIT_BYTES), realm=realm)

    def _checked_realm(self, realm: str) -> str:
        """The address of a token server; StoreError when credentials must not go there."""
        scheme, host, port = origin_of(realm)
        ours, our_host, our_port = origin_of(self._url)
        is_ours = (scheme, host, port) == (ours, our_host, our_port)
        is_here = (
            scheme == "http"
            and self._connections.is_loopback(our_host, our_port)
            and self._connections.is_loopback(host, port)
        )
        if host and "@" not in realm and (scheme == "https" or is_ours or is_here):
            return urllib.parse.urldefrag(realm).url
        message = f"{self._host} names {shown(realm)!r} as its token server, which is not https"
        raise StoreError(message, mend="nothing was sent there; ask who runs the registry")


def _token_of(data: bytes, *, realm: str) -> str:
    try:
        said = _mapping(json.loads(data))
    except (ValueError, RecursionError):
        said = {}
    token = said.get("token") or said.get("access_token")
    if isinstance(token, str) and _TOKEN.fullmatch(token):
        return token
    raise StoreError(f"{shown(realm)} gives no token", mend="ask who runs the registry")

"""The address of a repository in an OCI registry: `oci://host[:port]/name`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from planyard.core.errors import InputError

HUB = "docker.io"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_LOOPBACK_HOST = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A repository: `host` with its port, and whether it is spoken to without TLS."""

    host: str
    repository: str
    is_plain: bool = False

    @property
    def url(self) -> str:
        """Where its API lies."""
        host = "registry-1.docker.io" if self.host == HUB else self.host
        return f"{'http' if self.is_plain else 'https'}://{host}/v2/{self.repository}"


def parse_address(url: str) -> Address:
    """Read `oci://host[:port]/name`; raises InputError for anything else.

    A registry on this machine is spoken to in plain http, and so is `oci+http://`.
    """
    scheme, _, rest = url.partition("://")
    host, _, repository = rest.partition("/")
    match = _HOST.fullmatch(host)
    problem = ""
    if scheme not in ("oci", "oci+http"):
        problem = "it does not start with oci://"
    elif not match or not 0 < int(match["port"] or 1) < 65536:
        problem = f"{host[:80]!r} is not a host"
    elif not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        problem = f"{repository[:80]!r} is not the name of a repository"
    if problem or not match:
        raise InputError(
            [f"{url[:200]!r} is not the address of a repository: {problem}"],
            mend="write oci://host[:port]/name, the name in lower case without tag or digest",
        )
    is_plain = scheme == "oci+http" or _LOOPBACK_HOST.fullmatch(match["host"]) is not None
    return Address(host=host, repository=repository, is_plain=is_plain)

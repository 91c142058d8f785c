"""Where addresses lie, and connections to exactly the address that was judged.

What a server names (a redirect, a token server) may be a name for this machine or for a network
behind it. So names are resolved here, every address is judged, and no second look-up can give
another one than was judged. CVE-2020-15157 and its kin are what this is against.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import urllib3
import urllib3.connection
import urllib3.exceptions
import urllib3.util.connection

_TIMEOUT = urllib3.Timeout(connect=10.0, read=60.0)
_CONNECTIONS_KEPT = 32
_BLOCK_BYTES = 1 << 17
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Judge = Callable[[str, int], Sequence[str]]
"""The addresses of a host and port that may be connected to; may raise."""


class Zone(enum.Enum):
    """How far from the open internet an address lies, the outermost first."""

    PUBLIC = "public"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    LOOPBACK = "loopback"
    NOWHERE = "unusable"


def zone_of(address: str) -> Zone:
    """The zone of an IP address; an IPv4 address inside an IPv6 one counts as itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if not inner and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return zone_of(str(inner))
    elif ip.packed[0] == 0 or ip.packed[0] >= 240:
        return Zone.NOWHERE
    if ip.is_unspecified or ip.is_multicast:
        return Zone.NOWHERE
    if ip.is_loopback:
        return Zone.LOOPBACK
    if ip.is_link_local:
        return Zone.LINK_LOCAL
    return Zone.PUBLIC if ip.is_global else Zone.PRIVATE


def may_lead(origin: Zone, target: Zone) -> bool:
    """Whether a server in zone `origin` may send us to one in zone `target`."""
    if Zone.NOWHERE in (origin, target):
        return False
    here_to_private = (origin, target) == (Zone.LOOPBACK, Zone.PRIVATE)
    return target in (Zone.PUBLIC, origin) or here_to_private


def _resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host, in the order in which to try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is outside: name resolution, where addresses lie, and the time between attempts."""

    resolve: Callable[[str, int], Sequence[str]] = _resolve
    zone_of: Callable[[str], Zone] = zone_of
    pause: Callable[[float], None] = time.sleep

    def zones(self, host: str, port: int) -> dict[str, Zone]:
        """The zone of each address of a host; raises OSError when it has none."""
        return {each: self.zone_of(each) for each in self.resolve(host, port)}


def pool_of(scheme: str, host: str, port: int, *, judge: Judge) -> urllib3.HTTPConnectionPool:
    """A pool of connections to a host, each to an address that `judge` gives.

    TLS is verified against the system's authorities, or those that SSL_CERT_FILE names.
    """
    kept: dict[str, Any] = {
        "maxsize": _CONNECTIONS_KEPT,
        "timeout": _TIMEOUT,
        "blocksize": _BLOCK_BYTES,
    }
    kind: Any = _PlainConnection
    if scheme == "https":
        pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
            host, port, ssl_context=ssl.create_default_context(), **kept
        )
        kind = _SafeConnection
    else:
        pool = urllib3.HTTPConnectionPool(host, port, **kept)
    pool.ConnectionCls = functools.partial(kind, judge)  # type: ignore[assignment]
    return pool


def _connect(connection: urllib3.connection.HTTPConnection, judge: Judge) -> socket.socket:
    failure = OSError("the name has no address")
    try:
        addresses = judge(connection.host, connection.port or 0)
    except OSError as error:
        raise urllib3.exceptions.NewConnectionError(connection, str(error)) from error
    for address in addresses:
        place = (address, connection.port or 0)
        try:
            return urllib3.util.connection.create_connection(
                place, connection.timeout, socket_options=connection.socket_options
            )
        except OSError as error:
            failure = error
    raise urllib3.exceptions.NewConnectionError(connection, str(failure)) from failure


class _PlainConnection(urllib3.connection.HTTPConnection):
    def __init__(self, judge: Judge, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._judge = judge

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._judge)


class _SafeConnection(urllib3.connection.HTTPSConnection):
    def __init__(self, judge: Judge, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._judge = judge

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._judge)

"""cosign, the one program that signs and verifies in-toto statements for us.

Chosen is `attest-blob --statement` with `verify-blob-attestation --digest` over `sign-blob`: the
statement's own bytes are the payload of a DSSE bundle, so that any tool for attestations can check
type and subject, and subjects need not be files. (`--predicate` would write another statement.)

It fails closed: no program, an old one, silence, noise, a bad exit code, a bundle that is not what
was asked for, each ends with an error of exit code 10. cosign's word alone is never enough: the
bundle is read strictly before it is verified and after it is written (`core/sigstore_bundle.py`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planyard.core.errors import InputError, IntegrityError
from planyard.core.sigstore_bundle import BUNDLE_LIMIT_BYTES, outline_of_statement, read_bundle
from planyard.edge import files, proc
from planyard.edge.cosign_flags import (
    SETUP_COMMAND,
    CosignError,
    Key,
    checked_key,
    checked_name,
    environment_for,
    flags_in_help,
    require_token,
    sign_arguments,
    verify_arguments,
)

PINNED = (3, 1, 3)
"""What `planyard setup --with cosign` builds."""
FLOORS = {2: (2, 6, 5), 3: (3, 1, 3)}
"""The first versions without GHSA-fx35-mq7g-6g98 (a key inside a bundle beat the one given)."""
OUTPUT_LIMIT_BYTES = 1 << 20
GRACE_SECONDS = 0.5
PROBE_SECONDS = 20.0

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_VERSION_LINE = re.compile(r'\bgitVersion"?\s*:\s*"?([^\s",}]*)', re.IGNORECASE)
_VERIFIED = re.compile(r"^Verified OK\s*$", re.MULTILINE)
_COMPLAINT = re.compile(r"^\s*(?:error|fatal|panic)\b.*", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Cosign:
    """A cosign that was asked for its version: its absolute path, and that version."""

    program: str
    version: tuple[int, int, int]


def cached_program(cache: Path) -> Path:
    """Where the pinned cosign lies in a cache."""
    return cache / "tools" / f"cosign-v{_shown(PINNED)}" / "cosign"


def find_cosign(*, cache: Path | None = None) -> Cosign:
    """The first cosign that may be trusted: that on the PATH, then the one built into the cache.

    `cache` is the user's when not given. Raises CosignError, with what is wrong with each.
    """
    on_path = proc.find_program("cosign")
    cached = cached_program(cache or files.user_cache())
    reasons = []
    for program in (on_path, str(cached) if cached.exists() else None):
        # A relative folder on the PATH would let the folder one stands in decide.
        if program and Path(program).is_absolute():
            try:
                return check_program(program)
            except CosignError as error:
                reasons.append(error.message)
    message = "; ".join(reasons) or "cosign is neither on the PATH nor in the cache"
    raise CosignError(message, mend=SETUP_COMMAND)


def check_program(program: str) -> Cosign:
    """Ask a program for its version; raises CosignError when it is unknown or below the floor."""
    with _scratch() as scratch:
        environment = environment_for(None, given={}, scratch=scratch, sign=False)
        said = _call(
            [program, "version", "--json"],
            environment=environment,
            scratch=scratch,
            timeout_seconds=PROBE_SECONDS,
        )
    named = _VERSION_LINE.search(said.output) if said.exit_code == 0 else None
    match = _VERSION.fullmatch(named[1]) if named else None
    if match is None:
        shown = repr(named[1][:40]) if named else "none"
        raise CosignError(
            f"{program} names no released version ({shown})",
            mend=SETUP_COMMAND,
            log_tail=said.tail,
        )
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < FLOORS.get(version[0], FLOORS[max(FLOORS)]):
        floors = " or ".join(_shown(floor) for floor in FLOORS.values())
        raise CosignError(
            f"{program} is cosign {_shown(version)}, which can be deceived; {floors} is needed",
            mend=SETUP_COMMAND,
        )
    return Cosign(program=program, version=version)


def sign_statement(
    cosign: Cosign,
    statement: bytes,
    *,
    key: str | None,
    environment: Mapping[str, str],
    timeout_seconds: float = 60.0,
) -> bytes:
    """Sign an in-toto statement; returns a bundle v0.3 whose payload is exactly `statement`.

    `key` is a file, `env://NAME` or a KMS reference, its password in COSIGN_PASSWORD; without one
    an OIDC token in `environment` signs. With a key of a file or variable nothing leaves the
    machine. Raises InputError for a key or statement that cannot be used, else IntegrityError.
    """
    outline_of_statement(statement)
    signer = None if key is None else checked_key(key, environment=environment)
    if signer is None:
        require_token(environment)
    known = _known_flags(cosign, "attest-blob")
    with _scratch() as scratch:
        source, target = scratch / "statement.json", scratch / "bundle.json"
        source.write_bytes(statement)
        arguments = sign_arguments(
            known, key=signer, scratch=scratch, statement=source, bundle=target
        )
        said = _call(
            [cosign.program, *arguments],
            environment=environment_for(signer, given=environment, scratch=scratch, sign=True),
            scratch=scratch,
            timeout_seconds=timeout_seconds,
        )
        _expect_success(said, done="signed")
        bundle = read_bundle(_read_bundle_file(target, said))
    if bundle.payload != statement:
        raise IntegrityError("cosign signed something else than the statement it was given")
    if bundle.by_key != (signer is not None):
        raise IntegrityError("cosign signed with something else than the key it was given")
    return bundle.trusted_form


def verify_statement(
    cosign: Cosign,
    statement: bytes,
    bundle: bytes,
    *,
    key: str | None,
    identity: str | None = None,
    issuer: str | None = None,
    environment: Mapping[str, str],
    timeout_seconds: float = 60.0,
) -> None:
    """Return only if `bundle` signs exactly `statement`, by `key`, or as `identity` of `issuer`.

    What the statement means is for the caller to check: its predicate type, subjects and result.
    Raises InputError for what cannot be used, else IntegrityError.
    """
    signer = _checked_signer(key, identity=identity, issuer=issuer, environment=environment)
    outline = outline_of_statement(statement)
    read = read_bundle(bundle)
    if read.payload != statement:
        raise IntegrityError("the bundle signs another statement")
    if read.by_key != (signer is not None):
        has, wanted = ("a key", "a certificate") if read.by_key else ("a certificate", "a key")
        raise IntegrityError(f"the bundle was signed with {has}, and {wanted} is expected")
    known = _known_flags(cosign, "verify-blob-attestation")
    with _scratch() as scratch:
        # What was checked above is what cosign gets, whatever else the bytes might be read as.
        target = scratch / "bundle.json"
        target.write_bytes(read.trusted_form)
        arguments = verify_arguments(
            known,
            key=signer,
            identity=identity,
            issuer=issuer,
            scratch=scratch,
            bundle=target,
            outline=outline,
        )
        said = _call(
            [cosign.program, *arguments],
            environment=environment_for(signer, given=environment, scratch=scratch, sign=False),
            scratch=scratch,
            timeout_seconds=timeout_seconds,
        )
    _expect_success(said, done="verified")
    if not _VERIFIED.search(said.output):
        raise IntegrityError("cosign did not say that it verified", log_tail=said.tail)


def _checked_signer(
    key: str | None,
    *,
    identity: str | None,
    issuer: str | None,
    environment: Mapping[str, str],
) -> Key | None:
    if key is None:
        checked_name(identity, what="identity")
        checked_name(issuer, what="issuer")
        return None
    if identity or issuer:
        raise InputError(["a key and an identity were given: a signature has one of them"])
    return checked_key(key, environment=environment)


def _known_flags(cosign: Cosign, verb: str) -> frozenset[str]:
    try:
        found = Path(cosign.program).stat()
    except OSError as error:
        raise CosignError(f"{cosign.program} is gone", mend=SETUP_COMMAND) from error
    return _probe_flags(cosign.program, verb, (found.st_ino, found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=32)
def _probe_flags(program: str, verb: str, _stamp: tuple[int, ...]) -> frozenset[str]:
    """Asked once for a program: `_stamp` changes when another lies in its place."""
    with _scratch() as scratch:
        said = _call(
            [program, verb, "--help"],
            environment=environment_for(None, given={}, scratch=scratch, sign=False),
            scratch=scratch,
            timeout_seconds=PROBE_SECONDS,
        )
    if said.exit_code != 0:
        raise CosignError(f"{program} does not know {verb}", mend=SETUP_COMMAND, log_tail=said.tail)
    return flags_in_help(said.output)


def _scratch() -> contextlib.AbstractContextManager[Path]:
    """A folder that only this user can enter, gone when the block ends."""
    return files.scratch_folder(Path(tempfile.gettempdir()), prefix="planyard-cosign-")


def _call(
    args: list[str],
    *,
    environment: Mapping[str, str],
    scratch: Path,
    timeout_seconds: float,
) -> proc.Completed:
    try:
        return proc.run_unchecked(
            args,
            timeout_seconds=timeout_seconds,
            cwd=scratch,
            env=environment,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            grace_seconds=GRACE_SECONDS,
        )
    except proc.ProcessError as error:
        raise CosignError(f"cosign {args[1]}: {error}", log_tail=error.tail) from error


def _expect_success(said: proc.Completed, *, done: str) -> None:
    """Raise unless cosign ended well and complained of nothing."""
    verb = said.args[1]
    if said.exit_code < 0:
        raise CosignError(
            f"cosign {verb} was killed by signal {-said.exit_code}: nothing was {done}",
            log_tail=said.tail,
        )
    complaint = _COMPLAINT.search(said.output)
    if said.exit_code == 0 and complaint is None:
        return
    mend = "set COSIGN_PASSWORD to the password of the key" if "decrypt" in said.output else ""
    reason = f": {complaint[0].strip()[:200]}" if complaint else ""
    raise IntegrityError(
        f"cosign {verb} ended with {said.exit_code}, nothing was {done}{reason}",
        mend=mend,
        log_tail=said.tail,
    )


def _read_bundle_file(path: Path, said: proc.Completed) -> bytes:
    """The bundle cosign left; a link, a pipe or an endless file is not followed or waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise IntegrityError(
            f"cosign ended well and left no bundle ({error.strerror})", log_tail=said.tail
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError("cosign left a bundle that is no regular file", log_tail=said.tail)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(BUNDLE_LIMIT_BYTES + 1)


def _shown(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))

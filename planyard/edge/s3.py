"""S3, or any server that AWS_ENDPOINT_URL names: the only module that imports boto3 and botocore.

`Caller` asks for one operation at a time and says what went wrong in words; `s3_bucket.Bucket` is
made of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planyard.core.errors import StoreError

_NOT_INSTALLED = "objects on S3 need boto3, which is not installed"
_INSTALL = 'pip install "planyard[s3]"'

_NO_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_BAD_KEY = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"
)
_MENDS = {
    "InvalidAccessKeyId": _BAD_KEY,
    "SignatureDoesNotMatch": _BAD_KEY,
    "ExpiredToken": "the credentials have expired: log in again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the region of the bucket",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the region of the bucket",
    "BadDigest": "bytes were changed on the way: try again; if it stays, suspect a proxy",
}


class RefusedError(StoreError):
    """The server answered, and did not do it; `retried` if an earlier try went without answer."""

    exit_code = StoreError.exit_code

    def __init__(self, message: str, *, mend: str, status: int, code: str, retried: bool) -> None:
        super().__init__(message, mend=mend)
        self.status = status
        self.code = code
        self.retried = retried


class UnansweredError(StoreError):
    """No answer came, or no whole one: what was asked may have been done, or not."""

    exit_code = StoreError.exit_code


class BrokenError(UnansweredError):
    """An answer came, and broke off before its end, or its length is not what it says."""

    exit_code = StoreError.exit_code


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server, and how often to ask it."""

    connect_seconds: float = 10
    read_seconds: float = 60
    attempts: int = 4


def client() -> Any:
    """A client set up from the usual AWS variables and profiles; StoreError without boto3."""
    try:
        import boto3.session
    except ImportError as error:
        raise StoreError(_NOT_INSTALLED, mend=_INSTALL) from error
    return boto3.session.Session().client("s3")


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn what boto3 raises in the block into a StoreError about `what`."""
    try:
        import boto3.exceptions
        import botocore.exceptions
    except ImportError:
        yield  # `client` says what to install
        return
    try:
        yield
    except (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        boto3.exceptions.Boto3Error,
    ) as error:
        mend = "check the address, AWS_ENDPOINT_URL and the AWS credentials"
        raise StoreError(f"{what}: {error}", mend=mend) from error


def _store_client(endpoint: str | None, patience: Patience) -> tuple[Any, str]:
    """A client for `Caller`, and the endpoint it was told, empty for AWS itself."""
    try:
        import botocore.config
        import botocore.configprovider
        import botocore.exceptions
        import botocore.session
    except ImportError as error:
        raise StoreError(_NOT_INSTALLED, mend=_INSTALL) from error
    try:
        session = botocore.session.Session()
        told = botocore.configprovider.ConfiguredEndpointProvider(
            full_config=session.full_config,
            scoped_config=session.get_scoped_config(),
            client_name="s3",
            environ=os.environ,
        )
        endpoint = endpoint or told.provide() or ""
        config = botocore.config.Config(
            connect_timeout=patience.connect_seconds,
            read_timeout=patience.read_seconds,
            retries={"mode": "standard", "total_max_attempts": patience.attempts},
            max_pool_connections=64,  # a pool that is too small closes connections and complains
            tcp_keepalive=True,
            # A checksum goes with everything that is written: no second one, no signed body.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "payload_signing_enabled": False,
                "addressing_style": "path" if endpoint else "auto",
            },
        )
        # Servers other than AWS seldom care, but every signature names a region.
        region = session.get_config_variable("region") or ("us-east-1" if endpoint else None)
        made = session.create_client(
            "s3", endpoint_url=endpoint or None, region_name=region, config=config
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        mend = "check AWS_ENDPOINT_URL, AWS_PROFILE and AWS_DEFAULT_REGION"
        raise StoreError(f"no client for S3 can be set up: {error}", mend=mend) from error
    return made, endpoint


class Caller:
    """Asks a server about one bucket; `endpoint` is empty for AWS itself."""

    def __init__(self, bucket: str, *, endpoint: str | None, patience: Patience) -> None:
        self.bucket = bucket
        self._client, self.endpoint = _store_client(endpoint, patience)

    def call(self, operation: str, **args: Any) -> Any:
        """Ask for an operation of the bucket; RefusedError or UnansweredError when it fails."""
        import botocore.exceptions as known
        from botocore.parsers import ResponseParserError

        where = f"s3://{self.bucket}/{args.get('Key', args.get('Prefix', ''))}"
        try:
            return getattr(self._client, operation)(Bucket=self.bucket, **args)
        except known.ClientError as error:
            raise self._refused(where, error.response, operation) from error
        except (
            known.NoCredentialsError,
            known.PartialCredentialsError,
            known.CredentialRetrievalError,
        ) as error:
            raise StoreError(f"{where}: {error}", mend=_NO_CREDENTIALS) from error
        # botocore lets a ValueError pass for a time that it cannot read.
        except (known.BotoCoreError, ResponseParserError, OSError, ValueError) as error:
            at = self.endpoint or "AWS"
            mend = f"check that {at} can be reached (AWS_ENDPOINT_URL, proxies), and try again"
            raise UnansweredError(f"{where}: {at} did not answer: {error}", mend=mend) from error

    def _refused(self, where: str, response: Any, operation: str) -> RefusedError:
        """What the server said, and what can be done about it."""
        code = str(response.get("Error", {}).get("Code", ""))
        said = str(response.get("Error", {}).get("Message", ""))[:300]
        about = response.get("ResponseMetadata", {})
        status = int(about.get("HTTPStatusCode", 0))
        mend = _MENDS.get(code, "")
        if code == "NoSuchBucket" or (operation == "head_bucket" and status == 404):
            code, said = "NoSuchBucket", f"there is no bucket {self.bucket}"
            option = f"--endpoint-url {self.endpoint} " if self.endpoint else ""
            mend = f"aws {option}s3 mb s3://{self.bucket}"
        elif not mend and status == 403:
            mend = (
                f"these credentials may not do that in {self.bucket}: allow {_allowed(operation)}"
            )
        elif not mend and (status >= 500 or status == 429):
            mend = "the server is busy or broken: try again later"
        return RefusedError(
            f"{where}: refused with {status} {code}: {said}",
            mend=mend or "check the address and AWS_ENDPOINT_URL",
            status=status,
            code=code,
            retried=bool(about.get("RetryAttempts")),
        )


def _allowed(operation: str) -> str:
    """The name of the right that an operation needs, in a policy of AWS."""
    if operation.startswith("list_objects") or operation == "head_bucket":
        return "s3:ListBucket"
    if operation in ("get_object", "head_object"):
        return "s3:GetObject"
    return "s3:DeleteObject" if operation == "delete_object" else "s3:PutObject"


@contextlib.contextmanager
def breaks() -> Iterator[None]:
    """Turn what is raised while an answer is read into BrokenError."""
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import URLLib3SSLError  # all but this one come translated

    try:
        yield
    except (BotoCoreError, URLLib3SSLError, OSError) as error:
        raise BrokenError(f"the connection broke: {error}") from error

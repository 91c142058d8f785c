"""S3, or any server that AWS_ENDPOINT_URL names: the only module that imports boto3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from planyard.core.errors import StoreError


def client() -> Any:
    """A client set up from the usual AWS variables and profiles; StoreError without boto3."""
    try:
        import boto3.session
    except ImportError as error:
        message = "objects on S3 need boto3, which is not installed"
        raise StoreError(message, mend='pip install "planyard[s3]"') from error
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

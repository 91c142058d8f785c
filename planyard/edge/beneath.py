"""Opening files below a folder without following links, symbolic or hard.

A path that an untrusted file names is walked folder by folder with O_NOFOLLOW; comparing resolved
paths as text has been got wrong too often (CVE-2024-27318, CVE-2026-27489).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO

from planyard.core.errors import InputError
from planyard.core.onnx_outline import why_not_plain


def open_beneath(folder: Path, path: str) -> IO[bytes]:
    """Open `path` below `folder` for reading, following no link of either kind.

    `folder` itself may be reached through symbolic links. Raises InputError when `path` is not
    plain, is missing, goes through a symbolic link, or is not a regular file with one name.
    """
    if reason := why_not_plain(path):
        raise InputError([f"{path!r}: {reason}"])
    *folders, name = PurePosixPath(path).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = inner
        # Without O_NONBLOCK a FIFO would wait for a writer for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, dir_fd=at), "rb")
    except OSError as error:
        raise InputError([f"{path!r}: {_why_not_opened(error)}"]) from error
    finally:
        os.close(at)
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        file.close()
        reason = "has several names (hard links)" if stat.S_ISREG(found.st_mode) else "is no file"
        raise InputError([f"{path!r}: {reason}"], mend="put a plain copy of the file there")
    return file


def _why_not_opened(error: OSError) -> str:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "is or goes through a symbolic link, or something that is not a folder"
    return os.strerror(error.errno or 0)

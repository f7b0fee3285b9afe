"""Files that are either whole or absent, and the cache directory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from blocks import UsageError

UMASK = os.umask(0)
os.umask(UMASK)


def is_disk_error(error: Exception) -> bool:
    """Return whether a disk is full, over quota or read-only; safetensors says so in words only."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    errno_of_error = getattr(error, "errno", None)
    return errno_of_error in numbers or any(
        f"(os error {number})" in str(error) for number in numbers
    )


def cache_directory() -> Path:
    """Return where decoded data and tokenizers are kept: COCA_BLOCKS_CACHE or the user's cache."""
    chosen = os.environ.get("COCA_BLOCKS_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("coca-blocks"))


def digest(data: Any) -> str:
    """Return a hash of plain data (as canonical JSON), the same in every process."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that replaces it when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            # Else a crash of the machine may keep the new name and lose the content.
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~UMASK)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write plain data atomically, readable by a person."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote, or None where there is no such file.

    Raises `UsageError` that names a file which is there and cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}") from None

"""A cache on the disk that processes share: made once, never half there, never above its size.

Who uses an entry holds a shared lock on it until it ends, who makes or drops one an exclusive lock.
The kernel releases a lock with its process, so nothing is left behind by one that was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.core.files import cache_directory
from blocks import UsageError

DEFAULT_GIB = 20.0
_held: dict[Path, int] = {}  # entries that this process uses, and the lock file of each


def claim(name: str, make: Callable[[Path], None]) -> Path:
    """Return the directory of an entry, which no process drops before this one ends.

    ``make`` fills a new directory where there is no such entry yet; other processes that want it
    wait meanwhile. Raises `UsageError` where the cache cannot be written.
    """
    root = cache_directory() / "decoded"
    entry = root / name
    if entry in _held and entry.exists():
        return entry
    limit = limit_bytes()
    try:
        root.mkdir(parents=True, exist_ok=True)
        is_mine = _claim(entry, make)
        os.utime(entry)
        if is_mine:
            drop_oldest(root, limit)
    except OSError as error:
        raise UsageError(
            f"cannot write the cache of decoded data in {str(root)!r}: {error.strerror}; "
            "COCA_BLOCKS_CACHE=DIR names another place"
        ) from None
    return entry


def _claim(entry: Path, make: Callable[[Path], None]) -> bool:
    """Take a shared lock on an entry that exists; returns whether it had to be made."""
    is_mine = False
    handle = os.open(entry.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while True:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if entry.exists():
                break
            fcntl.flock(handle, fcntl.LOCK_EX)  # not atomic: another may make it, or drop it again
            if not entry.exists():
                _make(entry, make)
                is_mine = True
    except BaseException:
        os.close(handle)
        raise
    stale = _held.pop(entry, None)
    if stale is not None:
        os.close(stale)
    _held[entry] = handle
    return is_mine


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    unfinished = entry.with_suffix(".building")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        make(unfinished)
        for path in unfinished.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def limit_bytes() -> float:
    """Return how large the cache may grow: COCA_BLOCKS_CACHE_GIB, or 20 GiB."""
    limit = os.environ.get("COCA_BLOCKS_CACHE_GIB") or str(DEFAULT_GIB)
    try:
        gib = float(limit)
    except ValueError:
        gib = -1
    if not gib >= 0:
        raise UsageError(f"COCA_BLOCKS_CACHE_GIB must be a number of GiB from 0, got {limit!r}")
    return gib * 2**30


def drop_oldest(root: Path, limit: float) -> None:
    """Drop what killed processes left, then entries out of use, the longest unused first."""
    for unfinished in root.glob("*.building"):
        with _alone(unfinished) as free:
            if free:
                shutil.rmtree(unfinished, ignore_errors=True)
    entries = [path for path in root.iterdir() if path.is_dir() and not path.suffix]
    sizes = {path: _size(path) for path in sorted(entries, key=lambda path: path.stat().st_mtime)}
    total = sum(sizes.values())
    for entry, size in sizes.items():
        if total <= limit:
            return
        with _alone(entry) as free:
            if free:
                doomed = entry.with_suffix(".building")
                entry.replace(doomed)  # at once: never an entry with half of its files
                shutil.rmtree(doomed, ignore_errors=True)
                total -= size


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Try to take an entry's exclusive lock without waiting."""
    handle = os.open(entry.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.iterdir())

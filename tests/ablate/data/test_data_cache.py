from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packings import as_folder, items

from ablate.data import open_pairs
from ablate.data.cache import claim, drop_oldest, limit_bytes
from blocks import UsageError

# Opens a set with slow decoding in some processes at once; each says what it decoded and found.
OPEN = """
import multiprocessing, sys, time
from ablate.data import images, pairs

uri, processes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
context = multiprocessing.get_context("fork")
barrier = context.Barrier(processes)
decode, done = images.decode, []

def slow(*given):
    done.append(1)
    time.sleep(seconds)
    return decode(*given)

def work():
    barrier.wait()
    found = pairs.open_pairs(uri, 24)
    sys.stdout.write(f"{len(done)} {found.fingerprint} {found.images.sum()}\\n")
    sys.stdout.flush()

images.decode = slow
workers = [context.Process(target=work) for _ in range(processes - 1)]
for worker in workers:
    worker.start()
work()
for worker in workers:
    worker.join()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COCA_BLOCKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_ten_processes_at_once_decode_once(cache: Path, tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "set", items())
    lines = start(OPEN, uri, "10", "0.005").communicate()[0].splitlines()
    assert len(lines) == 10
    assert sorted(int(line.split()[0]) for line in lines) == [0] * 9 + [200]
    assert len({line.partition(" ")[2] for line in lines}) == 1
    assert len(entries(cache)) == 1


def test_what_a_killed_process_left_is_made_again(cache: Path, tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "set", items(60))
    process = start(OPEN, uri, "1", "60")
    limit = time.monotonic() + 30
    while not list(cache.glob("*.building/unsorted")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [Path(name).suffix for name in entries(cache)] == [".building"]
    assert len(open_pairs(uri, 24).captions) == 60
    assert [Path(name).suffix for name in entries(cache)] == [""]


# Says by how many bytes opening a set raised the most that the process ever held in memory.
MEASURE = """
import resource, sys
from ablate.data import open_pairs
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = most()
images = open_pairs("embedded:stamps", 224).images
print(most() - before, images.nbytes)
"""


def test_decoding_does_not_hold_the_set_in_memory(cache: Path) -> None:
    grown, size = map(int, start(MEASURE).communicate()[0].split())
    assert size > 120e6
    assert grown < size / 2


def zeros(number: int) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        (directory / "content").write_bytes(bytes(number))

    return make


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def make_unused(cache: Path, name: str, *, age: int) -> None:
    """Make an entry that no process uses, last used some seconds ago."""
    (cache / name).mkdir(parents=True)
    (cache / name / "content").write_bytes(bytes(1000))
    before = time.time() - age
    os.utime(cache / name, (before, before))


def test_the_longest_unused_entries_are_dropped(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (("old", 30), ("older", 60), ("young", 10)):
        make_unused(cache, name, age=age)
    monkeypatch.setenv("COCA_BLOCKS_CACHE_GIB", str(2500 / 2**30))
    claim("new", zeros(1000))
    assert entries(cache) == {"new", "young"}


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_SH)
print("ready", flush=True)
sys.stdin.read()
"""


def test_entries_in_use_are_never_dropped(cache: Path) -> None:
    claim("mine", zeros(1000))
    make_unused(cache, "theirs", age=60)
    make_unused(cache, "nobodys", age=1)
    holder = start(HOLD, str(cache / "theirs.lock"))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    drop_oldest(cache, 0)
    assert entries(cache) == {"mine", "theirs"}
    holder.kill()
    holder.communicate()
    drop_oldest(cache, 0)
    assert entries(cache) == {"mine"}


def test_a_set_larger_than_the_cache_can_still_be_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCA_BLOCKS_CACHE_GIB", "0")
    first = open_pairs(as_folder(tmp_path / "one", items(20)), 24)
    open_pairs(as_folder(tmp_path / "two", items(30)), 24)
    assert np.asarray(first.images).shape == (20, 24, 24, 3)
    assert len(entries(cache)) == 2


def test_a_cache_that_was_deleted_meanwhile_is_made_again(cache: Path, tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "set", items(20))
    before = open_pairs(uri, 24)
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    after = open_pairs(uri, 24)
    assert np.array_equal(before.images, after.images)


def test_an_entry_that_fails_leaves_nothing(cache: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_bytes(b"x")
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        claim("entry", fail)
    assert entries(cache) == set()
    with (cache / "entry.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it


def test_damage_and_a_cache_that_cannot_be_written_are_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = as_folder(tmp_path / "set", items(20))
    open_pairs(uri, 24)
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    content = (entry / "images.npy").read_bytes()
    (entry / "images.npy").write_bytes(content[:500])
    with pytest.raises(UsageError, match=r"decoded data '.*' is damaged .*; delete it"):
        open_pairs(uri, 24)
    (tmp_path / "file").touch()
    monkeypatch.setenv("COCA_BLOCKS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write the cache .* COCA_BLOCKS_CACHE=DIR"):
        open_pairs(uri, 24)


def test_the_limit_is_a_number_of_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCA_BLOCKS_CACHE_GIB", raising=False)
    assert limit_bytes() == 20 * 2**30
    monkeypatch.setenv("COCA_BLOCKS_CACHE_GIB", "0.5")
    assert limit_bytes() == 2**29
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("COCA_BLOCKS_CACHE_GIB", wrong)
        with pytest.raises(UsageError, match=f"must be a number of GiB from 0, got '{wrong}'"):
            limit_bytes()

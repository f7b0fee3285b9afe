"""Fixtures for all tests: a cache of their own, and small real sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from samples import Member, shapes_rows, write_shard


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # two spinning threads beside a busy neighbour are slower than one


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("COCA_BLOCKS_CACHE", str(base))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of 200 drawn shapes with captions."""
    path = tmp_path_factory.mktemp("data") / "shapes.tar"
    return f"webdataset:{write_shard(path, shapes_rows())}"


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes members into a shard and returns its URI."""

    def write(members: Iterable[Member], name: str = "data.tar", mode: str = "w") -> str:
        return f"webdataset:{write_shard(tmp_path / name, members, mode)}"

    return write

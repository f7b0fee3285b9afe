"""Trials under Ray on this machine: their order, several workers to a trial, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import check_equal, run_alone
from samples import SMALL, small

from ablate.core.files import is_disk_error
from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.core.recipe import Recipe, with_fields
from ablate.core.resources import Resources
from ablate.core.trial import Trial, device_kind, make_trial, to_dict
from ablate.data import open_pairs
from ablate.execution.ray_worker import FinalError, UnwritableError, _said, steps
from ablate.execution.tune_runner import _graceful_termination, launch_order, refuse_other_device
from blocks import UsageError, default_registry

SETTINGS = {"steps": 20, "batch": 16, "evaluate": 2, "evaluation_batch": 16, "lr": 0.001}
CELLS = ("original", "baseline", "grr", "clip")


def trials(shapes: str, seeds: int, cells: tuple[str, ...] = CELLS) -> list[Trial]:
    recipe = with_fields(Recipe(), {"data": shapes, **SETTINGS})
    fingerprint, registry = open_pairs(shapes, 32).fingerprint, default_registry()
    return [
        make_trial(name, small(name), recipe, seed, fingerprint, registry)
        for name in cells
        for seed in range(seeds)
    ]


def test_seeds_come_one_after_the_other_and_cells_in_mixed_order(shapes: str) -> None:
    every = trials(shapes, 6)
    order = launch_order(every)
    assert sorted(t.key for t in order) == sorted(t.key for t in every)
    blocks = [order[i : i + len(CELLS)] for i in range(0, len(order), len(CELLS))]
    assert [{t.seed for t in block} for block in blocks] == [{seed} for seed in range(6)]
    assert all({t.name for t in block} == set(CELLS) for block in blocks)
    assert len({tuple(t.name for t in block) for block in blocks}) > 2
    assert launch_order(every[::-1]) == order
    assert launch_order(order[5:]) == order[5:]  # the order in which a stopped study goes on


def test_a_workers_failure_is_known_by_its_words() -> None:
    """Ray Train passes on what its workers raise as text."""
    passed_on = RuntimeError("rank 1:\nTraceback ...\nablate.worker.FinalError: loss nan\n")
    assert _said(FinalError, passed_on) == "loss nan"
    assert _said(UnwritableError, passed_on) == ""
    assert _said(UnwritableError, UnwritableError("no space")) == "no space"


@pytest.mark.parametrize("other", ["device", "registry"])
def test_a_worker_refuses_to_compute_other_numbers(
    shapes: str, tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ablate.execution.ray_worker.redirect_output", lambda directory: None
    )  # pytest's own
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (job,) = trials(shapes, 1, ("baseline",))
    given = {
        "trial": to_dict(job),
        "study": str(tmp_path),
        "threads": 1,
        "plugins": (),
        "here": ".",
    }
    given |= {"device": device_kind(), "registry": default_registry().fingerprint()}
    assert next(steps(given))["step"] == 1
    with pytest.raises(FinalError, match=r"this worker (trains on|has other blocks)"):
        next(steps(given | {other: "another"}))
    failure = Ledger(tmp_path).failure(job)
    assert failure is not None
    assert "UsageError: this worker" in failure


def test_trials_get_the_kind_of_device_that_their_keys_say(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {False: Resources(gpus=0), True: Resources(gpus=0.25)}
    cures = {False: "start the command on a node with a GPU", True: "CUDA_VISIBLE_DEVICES="}
    for has_gpu, cure in cures.items():
        monkeypatch.setattr("torch.cuda.is_available", lambda found=has_gpu: found)
        refuse_other_device(kinds[has_gpu])
        with pytest.raises(UsageError, match=cure):
            refuse_other_device(kinds[not has_gpu])


def test_ctrl_c_is_not_lost_to_an_earlier_run_of_tune() -> None:
    """Tune leaves its handler of SIGUSR1 behind; Ctrl-C may come before the next one's is set."""
    earlier, received = signal.getsignal(signal.SIGUSR1), []
    signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    try:
        with pytest.raises(KeyboardInterrupt), _graceful_termination() as asked:
            os.kill(os.getpid(), signal.SIGINT)
        assert asked == [signal.SIGINT]
        assert not received
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == before
    finally:
        signal.signal(signal.SIGUSR1, earlier)


def test_full_disks_are_known_however_they_are_told() -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("w") as file:
        file.write("x" * 99999)
    assert is_disk_error(full.value)
    said = "I/O error: No space left on device (os error 28)"
    assert is_disk_error(SafetensorError(said))
    assert not is_disk_error(FileNotFoundError(2, "No such file"))


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 16 megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def run(shapes: str, study: Path, *more: str) -> tuple[int, str]:
    settings = [f"--set={k}={v}" for k, v in {**SMALL, **SETTINGS, "data": shapes}.items()]
    where = ["--study", str(study), "--mlflow", f"sqlite:///{study.parents[1]}/mlflow.db"]
    grid = ["--grid", "paper", "--stages", "pretrain", "--seeds", "1"]
    command = [sys.executable, "-m", "ablate.run", *grid, *where, *settings, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_stops_the_study_in_one_line(
    shapes: str, little_disk: Path, tmp_path: Path
) -> None:
    filler = little_disk / "filler"
    filler.write_bytes(b"x" * 16_200_000)
    code, shown = run(shapes, little_disk / "study")
    assert code == 2, shown
    assert "Traceback" not in shown
    last = shown.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert "the same command goes on from here" in last
    filler.unlink()
    code, shown = run(shapes, little_disk / "study")
    assert code == 0, shown
    subprocess.run(["mount", "-o", "remount,ro", str(little_disk)], check=True)
    code, shown = run(shapes, little_disk / "study", "--set", "beta2=0.9")
    assert code == 2, shown
    assert "Read-only file system" in shown.strip().splitlines()[-1]
    assert "Traceback" not in shown


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_of_two_workers_has_the_numbers_of_one(shapes: str, tmp_path: Path) -> None:
    study = tmp_path / "a" / "study"
    code, shown = run(shapes, study, "--workers-per-trial", "2", "--max-concurrent", "1")
    assert code == 0, shown
    assert "Reporting" not in (study / "log.txt").read_text()
    for job in read_plan(study).trials:
        run_alone(job, tmp_path / job.label)
        check_equal(job, tmp_path / job.label, Ledger(study).folder(job))

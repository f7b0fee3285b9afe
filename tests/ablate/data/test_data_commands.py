from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packings import as_folder, as_parquet, items
from PIL import Image
from samples import draw

from ablate.cli.command import main
from ablate.data import open_pairs

COMMAND = [sys.executable, "-m", "ablate", "data"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return as_folder(tmp_path / "set", items())


def test_inspect_counts_what_is_there(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(folder.removeprefix("folder:")) / "00000/000005.png").write_bytes(b"broken")
    assert main(["data", "inspect", folder, "--size", "24"]) == 0
    words = capsys.readouterr().out
    assert "199 pairs (train" in words
    assert "captions: 398, of which 398 distinct; per pair 2 to 2, mean 2.00" in words
    assert "skipped: 1 x image cannot be decoded (first: '00000/000005')" in words
    assert main(["data", "inspect", folder, "--size", "24", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    pairs = open_pairs(folder, 24)
    assert facts["fingerprint"] == pairs.fingerprint
    assert facts["splits"] == {s: len(pairs.indices(s)) for s in ("train", "val", "test")}
    assert facts["captions"]["words"] == {"median": 4.5, "p95": 5.0, "most": 5}
    assert facts["skipped"] == {"image cannot be decoded": 1}
    assert facts["refused"] is False


def test_inspect_shows_sets_that_a_study_refuses(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        (Path(folder.removeprefix("folder:")) / f"00000/00000{i}.png").write_bytes(b"broken")
    assert main(["data", "inspect", folder, "--size", "24"]) == 1
    words = capsys.readouterr().out
    assert "195 pairs" in words
    assert "would refuse this set: 2.5% of its pairs cannot be used, and at most 1%" in words


def test_inspect_counts_draws_of_a_weighted_mixture(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", f"mixture:train=3*{folder}", "--size", "24"]) == 0
    assert "an epoch of training draws 600 pairs" in capsys.readouterr().out


def test_the_contact_sheet_shows_pairs(folder: str, tmp_path: Path) -> None:
    assert (
        main(["data", "inspect", folder, "--size", "24", "--sheet", str(tmp_path / "sheet.png")])
        == 0
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 500
    coloured = (pixels.max(-1) - pixels.min(-1) > 100).any(axis=0)
    assert [coloured[8 + 136 * i : 136 + 136 * i].any() for i in range(6)] == [True] * 6


def test_pack_keeps_everything_but_the_size(folder: str, tmp_path: Path) -> None:
    assert (
        main(["data", "pack", folder, str(tmp_path / "out"), "--size", "24", "--shard", "64"]) == 0
    )
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == [f"{i:05d}.tar" for i in range(4)]
    packed, source = (open_pairs(u, 24) for u in (f"webdataset:{tmp_path}/out/*.tar", folder))
    assert packed.fingerprint == source.fingerprint
    assert (
        main(["data", "pack", folder, str(tmp_path / "twin"), "--size", "24", "--shard", "64"]) == 0
    )
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


@pytest.mark.parametrize("write", [as_folder, as_parquet])
def test_a_killed_pack_goes_on_where_it_stopped(write: object, tmp_path: Path) -> None:
    uri, out = write(tmp_path / "set", items()), tmp_path / "out"  # type: ignore[operator]
    command = [*COMMAND, "pack", uri, str(out), "--size", "300", "--shard", "20"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert [process.stderr.readline()[:9] for _ in range(2)] == ["00000.tar", "00001.tar"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 2 <= len(before) < 10
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept = done.stderr.count("(kept)")
    assert 2 <= kept <= len(before)
    finished = [out / f"{i:05d}.tar" for i in range(kept)]
    assert [path.stat().st_mtime_ns for path in finished] == [before[path] for path in finished]
    assert f"200 pairs in 10 shards, of which {kept} were there already" in done.stdout
    packed = open_pairs(f"webdataset:{out}/*.tar", 300)
    assert packed.fingerprint == open_pairs(uri, 300).fingerprint


def test_pack_counts_what_it_skips_also_when_run_again(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        (Path(folder.removeprefix("folder:")) / f"00000/00000{i}.png").write_bytes(b"broken")
    for _ in range(2):
        assert main(["data", "pack", folder, str(tmp_path / "out"), "--size", "24"]) == 2
        said = capsys.readouterr().err
        assert "5 of 200 pairs cannot be used (5 x image cannot be decoded" in said


def test_a_pack_is_not_mixed_with_anything_else(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["data", "pack", folder, out, "--size", "24"]) == 0
    assert main(["data", "pack", folder, out, "--size", "32"]) == 2
    assert "holds a pack of size=24, now 32; name another" in capsys.readouterr().err
    other = Path(folder.removeprefix("folder:")) / "00000/000000.png"
    other.write_bytes(draw("blue", "frame", 3))
    assert main(["data", "pack", folder, out, "--size", "24"]) == 2
    assert "before a change" in capsys.readouterr().err
    assert main(["data", "pack", folder, str(other.parent), "--size", "24"]) == 2
    assert "is neither empty nor a pack" in capsys.readouterr().err
    assert main(["data", "pack", folder, str(other), "--size", "24"]) == 2
    assert "is a file; name a directory" in capsys.readouterr().err
    mixture = f"mixture:2*{folder}"
    assert main(["data", "pack", mixture, str(tmp_path / "mixed"), "--size", "24"]) == 2
    assert "a pack has no weights" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["inspect", "embedded:icon"], "did you mean 'icons'?"),
    (["inspect", "embedded:icons", "--size", "0"], "must be at least 1 pixel, got 0"),
    (["inspect", "embedded:icons", "--size", "x"], "invalid int value: 'x'"),
    (["inspekt", "embedded:icons"], "invalid choice: 'inspekt'"),
    (["pack", "embedded:icons", "out"], "required: --size"),
    (["pack", "embedded:icons", "out", "--size", "8", "--shard", "0"], "at least 1, got 8 and 0"),
    (["pack", "embedded:stamps", "/dev/null/x", "--size", "8"], "cannot write '/dev/null"),
    (["inspect", "embedded:stamps", "--size", "8", "--sheet", "/proc/x/y.png"], "cannot write "),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["data", *arguments])
    except SystemExit as leaving:
        code = int(str(leaving.code))
    assert code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_the_command_line_shows_no_traceback() -> None:
    done = subprocess.run([*COMMAND, "inspect", "icons"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read data 'icons'; did you mean 'embedded:icons'")
    assert done.stderr.count("\n") == 1


def test_a_terminal_sees_a_bar_and_a_log_sees_lines(folder: str, tmp_path: Path) -> None:
    command = [*COMMAND, "pack", folder, "", "--size", "24", "--shard", "100"]
    command[6] = str(tmp_path / "log")
    logged = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert [line.split(" (")[0] for line in logged.splitlines()] == [
        "00000.tar: 100 pairs, 0 skipped", "00001.tar: 100 pairs, 0 skipped",
    ]  # fmt: skip
    assert "\x1b" not in logged
    command[6] = str(tmp_path / "terminal")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
    process.communicate()
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b" in seen
    assert "packing" in seen

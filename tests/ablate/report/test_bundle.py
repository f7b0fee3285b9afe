from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import SMALL
from studies import finish, planned

from ablate.cli.command import main
from ablate.core.records import EXAMPLES_FILE as EXAMPLES
from ablate.core.records import read_record
from ablate.planning.planner import make_plan
from ablate.report.verify_bundle import MANIFEST, _other_metrics, verify
from ablate.training.stages import run_trial
from blocks import default_registry

REGISTRY = default_registry()
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def bundle(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of a small finished study."""
    directory = tmp_path_factory.mktemp("studies")
    plan, ledger = planned(directory / "paper", shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    (directory / "paper/own.svg").write_text("a user's own, which is left alone")
    assert main(["bundle", str(directory / "paper"), str(directory / "paper.zip")]) == 0
    return directory / "paper.zip"


def forged(bundle: Path, out: Path, change: Callable[[Files], None], signed: bool = True) -> Path:
    """Write the bundle with files changed, and with hashes made anew if ``signed``."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if signed:
        manifest = json.loads(files.pop(MANIFEST))
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files[MANIFEST] = json.dumps({**manifest, "sha256": sums}).encode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out


def result_of(files: Mapping[str, bytes]) -> str:
    return next(name for name in files if name.endswith("result.json"))


def with_metric(name: str, factor: float) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        record = json.loads(files[result_of(files)])
        record["metrics"][name] *= factor
        files[result_of(files)] = json.dumps(record).encode()

    return change


def replaced(name: str, old: str, new: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        text = files[name].decode()
        assert old in text
        files[name] = text.replace(old, new).encode()

    return change


def test_an_honest_bundle_holds_and_says_what_was_not_recomputed(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "not recomputed: figures, environment.txt" in capsys.readouterr().out


def test_a_changed_page_does_not_hold(bundle: Path, tmp_path: Path) -> None:
    change = replaced("report.html", "improves the CoCa loss", "improves it greatly")
    (line,) = verify(forged(bundle, tmp_path / "x.zip", change))
    assert line.startswith("report.html, line ")
    assert "improves it greatly" in line
    assert len(line) < 400


@pytest.mark.parametrize(("change", "words"), [
    (replaced("effects.svg", "contrastive loss", "another loss"), "effects.svg is not the file"),
    (replaced("effects.svg", ' width="', ' width="1'), "effects.svg is not the file"),
    (lambda files: files.pop("effects.svg"), "effects.svg is missing"),
    (lambda files: files.update({"other.svg": b"<svg/>"}), "other.svg is not the file"),
])  # fmt: skip
def test_a_changed_drawing_does_not_hold(
    change: Callable[[Files], None], words: str, bundle: Path, tmp_path: Path
) -> None:
    wrong = verify(forged(bundle, tmp_path / "x.zip", change, signed=False))
    assert any(words in line for line in wrong)


@pytest.mark.parametrize(("metric", "words"), [
    ("contrastive", "by example"), ("caption", "by example"),
    ("perplexity", "by the other losses"), ("coca", "by the other losses"),
])  # fmt: skip
def test_test_losses_follow_from_the_losses_by_example(
    metric: str, words: str, bundle: Path, tmp_path: Path
) -> None:
    wrong = verify(forged(bundle, tmp_path / "x.zip", with_metric(f"test/{metric}", 1.001)))
    assert any(f"result.json: test/{metric} is" in w and words in w for w in wrong)


def test_without_losses_by_example_nothing_follows(bundle: Path, tmp_path: Path) -> None:
    def change(files: Files) -> None:
        del files[next(name for name in files if name.endswith(EXAMPLES))]

    wrong = verify(forged(bundle, tmp_path / "x.zip", change))
    assert any("no losses by example" in line for line in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_what_training_writes_holds(
    precision: str, weight: float, shapes: str, tmp_path: Path
) -> None:
    settings = {**SMALL, "data": shapes, "steps": 8, "batch": 16, "evaluate": 2,
                "evaluation_batch": 7, "precision": precision,
                "contrastive_weight": weight}  # fmt: skip
    trial = make_plan("paper", "nano", 1, settings, REGISTRY).trials[0]
    assert [*run_trial(trial, tmp_path, REGISTRY)]
    record = read_record(tmp_path, trial.stages[0])
    assert record is not None
    assert [*_other_metrics(trial.stages[0], record, tmp_path)] == []


def damaged_study(files: Files) -> None:
    files["study.json"] = files["study.json"][:100]


def identical_curves(files: Files) -> None:
    curves = [name for name in files if name.endswith("curve.jsonl")]
    for name in curves:
        files[name] = files[curves[0]]


def no_metrics(files: Files) -> None:
    record = json.loads(files[result_of(files)])
    files[result_of(files)] = json.dumps({**record, "metrics": {}}).encode()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("change", "words"), [
    (damaged_study, "cannot be recomputed: cannot read 'paper/study.json'"),
    (identical_curves, "have identical curves"),
    (no_metrics, "report.md has"),
    (lambda files: files.update({"report.md": b"\xff\xfe"}), "report.md has 1 lines"),
    (lambda files: files.pop("study.json"), "cannot be recomputed: 'paper' is no study"),
    (lambda files: files.update({"study.json": b"[" * 100_000}), "cannot be recomputed"),
])  # fmt: skip
def test_what_cannot_be_recomputed_is_a_line(
    signed: bool, change: Callable[[Files], Any], words: str, bundle: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = forged(bundle, tmp_path / "x.zip", change, signed)
    assert main(["verify", str(out)]) == 1
    shown = capsys.readouterr().out
    assert words in shown
    assert "/tmp" not in shown.replace(str(tmp_path), "")
    assert signed or "is not the file that was bundled" in shown or "is missing" in shown


@pytest.mark.parametrize("manifest", [
    b"[]", b"5", b"{}", b'{"study": 5, "sha256": {}}', b'{"study": "x", "sha256": []}',
    b"[" * 100_000, b"\xff", b'{"study": "../x", "sha256": {}}',
    b'{"study": "x", "sha256": {}}' + b" " * 2**24,
])  # fmt: skip
def test_a_manifest_of_other_types_is_no_bundle(
    manifest: bytes, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(files: Files) -> None:
        files[MANIFEST] = manifest

    assert main(["verify", str(forged(bundle, tmp_path / "x.zip", change, signed=False))]) == 2
    assert "is no bundle: " in capsys.readouterr().err


def test_sizes_are_summed_before_anything_is_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(bundle) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        own = archive.getinfo(MANIFEST).file_size
    monkeypatch.setattr("ablate.report.verify_bundle.MAX_BYTES", size - own)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert main(["verify", str(bundle)]) == 2


def member(content: bytes, name: str) -> tuple[int, int]:
    """Return where in a zip file a member's local header and its central one begin."""
    encoded = name.encode()
    return content.index(encoded) - 30, content.rindex(encoded) - 46


def rotten(content: bytearray) -> None:
    local, _ = member(content, "report.md")
    content[local + 60] ^= 0xFF
    content[local + 39 : local + 44] = b"\xff" * 5


def encrypted(content: bytearray) -> None:
    local, central = member(content, "report.md")
    content[local + 6] |= 1
    content[central + 8] |= 1


def compressed_otherwise(content: bytearray) -> None:
    local, central = member(content, "report.md")
    content[local + 8] = content[central + 10] = 99


@pytest.mark.parametrize("damage", [rotten, encrypted, compressed_otherwise])
def test_a_member_that_cannot_be_read_is_named(
    damage: Callable[[bytearray], None], bundle: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = bytearray(bundle.read_bytes())
    damage(content)
    (tmp_path / "x.zip").write_bytes(content)
    assert main(["verify", str(tmp_path / "x.zip")]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"- report.md cannot be read: ", shown)
    assert "- report.md is missing" in shown


def test_another_version_is_named_where_sentences_differ(bundle: Path, tmp_path: Path) -> None:
    def change(files: Files) -> None:
        text = files["environment.txt"].decode()
        files["environment.txt"] = re.sub("coca-blocks==.*", "coca-blocks==0.0.7", text).encode()
        files["report.md"] = files["report.md"].replace(b"improves", b"betters")

    first, *others = verify(forged(bundle, tmp_path / "x.zip", change))
    assert first.startswith("made with coca-blocks 0.0.7, this is ")
    assert any(line.startswith("report.md, line ") for line in others)

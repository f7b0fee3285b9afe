"""What in a bundle does not hold: files that changed, numbers that come out otherwise.

A bundle is a stranger's: nothing in it is run or unpickled, and whatever is wrong with it is a line
of the answer. Hashes detect corruption, not tampering; numbers are recomputed from the losses by
example upwards, which an author may have made up too.
"""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.metrics import SELECTION
from ablate.core.plan import read_plan
from ablate.core.records import read_examples
from ablate.core.trial import Stage
from ablate.report.build import make_report, texts
from ablate.report.render import html
from blocks import UsageError

MANIFEST, ENVIRONMENT = "MANIFEST.json", "environment.txt"
MAX_BYTES = 2**32  # of an unpacked bundle; a real one of a hundred trials has some megabytes
MAX_MANIFEST = 2**24
RELATIVE = 1e-9  # two machines' arithmetic
FROM_EXAMPLES = 1e-4  # single precision, summed in another order
FROM_BF16 = 3e-3  # where a model's last product is rounded to bf16 in one of the two sums
AROUND = 60  # characters of a line that are shown before and after where it differs
DECIDE_THE_WORDS = ("coca-blocks", "matplotlib")
BROKEN = (
    OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    struct.error,
)  # fmt: skip


def verify(bundle: Path) -> list[str]:
    """Return what in a bundle does not hold, in words, files that changed first.

    Raises `UsageError` for what is no bundle at all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            study, wrong = _unpack(bundle, Path(temporary))
        except (KeyError, *BROKEN) as error:
            raise UsageError(f"{str(bundle)!r} is no bundle: {error}") from None
        try:
            wrong.extend(_recomputed(study))  # what was found stays if the rest fails
        except Exception as error:  # of any type: every file may be damaged in any way
            words = str(error).replace(str(study), study.name)
            named = words if isinstance(error, UsageError) else f"{type(error).__name__}: {words}"
            wrong.append(f"the report cannot be recomputed: {named}")
        return [*_other_versions(study), *wrong] if wrong else []


def _unpack(bundle: Path, temporary: Path) -> tuple[Path, list[str]]:
    """Unpack a bundle into a folder of the study's name; returns it, and which files changed."""
    with zipfile.ZipFile(bundle) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise ValueError("it unpacks to more than 4 GiB")
        name, sums = _manifest(archive)
        entries = [entry for entry in archive.infolist() if entry.filename != MANIFEST]
        for path in (name, *(entry.filename for entry in entries)):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"it has a file outside of itself: {path!r}")
        study = temporary / (PurePosixPath(name).name or "study")
        study.mkdir()
        wrong = [f"{path} is missing" for path in sums.keys() - {e.filename for e in entries}]
        for entry in entries:
            try:
                content = archive.read(entry)
            except BROKEN as error:
                wrong.append(f"{entry.filename} cannot be read: {error}")
                continue
            if hashlib.sha256(content).hexdigest() != sums.get(entry.filename):
                wrong.append(f"{entry.filename} is not the file that was bundled")
            place = study / entry.filename
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return study, sorted(wrong)


def _manifest(archive: zipfile.ZipFile) -> tuple[str, dict[str, str]]:
    """Return the study's name and the files' hashes; raises where they are not what they must."""
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
        raise ValueError(f"its {MANIFEST} has more than {MAX_MANIFEST / 2**20:.0f} MiB")
    content = json.loads(archive.read(MANIFEST))
    name, sums = (
        content.get(k) if isinstance(content, dict) else None for k in ("study", "sha256")
    )
    if not isinstance(name, str) or not isinstance(sums, dict):
        raise ValueError(f"its {MANIFEST} does not name a study and the hashes of its files")
    return name, sums


def _other_versions(study: Path) -> list[str]:
    """Return in a line which versions a bundle was made with, if they are not those here."""
    try:
        lines = (study / ENVIRONMENT).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    versions = dict(line.split("==", 1) for line in lines if "==" in line)
    other = [
        f"{name} {versions[name]}, this is {version(name)}"
        for name in DECIDE_THE_WORDS
        if name in versions and versions[name] != version(name)
    ]
    words = "; sentences and drawings may differ for that alone"
    return [f"made with {' and with '.join(other)}{words}"] if other else []


def _recomputed(study: Path) -> Iterator[str]:
    """Yield what comes out otherwise: metrics, then the report and its page.

    Drawings are known by their hashes alone: two machines lay text out differently.
    """
    plan, ledger = read_plan(study), Ledger(study)
    for trial in plan.trials:
        for stage in trial.stages:
            if (record := ledger.record(trial, stage)) is not None:
                folder = ledger.folder(trial) / stage.folder
                where = (folder / "result.json").relative_to(study)
                yield from (f"{where}: {line}" for line in _other_metrics(stage, record, folder))
    results = make_results(plan, ledger)
    document = make_report(plan, ledger, results)
    recomputed = texts(document, results) | {"report.html": html(document, study)}
    for name, text in recomputed.items():
        compare = _other_numbers if name.endswith(".csv") else _other_lines
        yield from compare(name, _given(study / name), text)


def _given(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _other_metrics(stage: Stage, record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the test losses of a stage that its losses by example do not lead to."""
    metrics, precision = record["metrics"], stage.recipe.precision
    full = precision == "fp32" or (precision == "auto" and record["device"] == "cpu")
    tolerance = FROM_EXAMPLES if full else FROM_BF16
    losses = {k: v.double().numpy() for k, v in (read_examples(folder) or {}).items()}
    test = {k.removeprefix("test/"): v for k, v in metrics.items() if k.startswith("test/")}
    follows = {}
    if "contrastive" in losses and np.isfinite(losses["contrastive"]).any():
        follows["contrastive"] = float(np.nanmean(losses["contrastive"]))
    if "caption" in losses:
        follows["caption"] = float(losses["caption"].sum() / losses["tokens"].sum())
    if not follows and SELECTION in test:
        yield "there are no losses by example that its test losses follow from"
        return
    for name, value in follows.items():
        if not _close(test.get(name, math.nan), value, tolerance):
            yield f"test/{name} is {test.get(name)}, by example {value:.6g}"
    weights = {
        "contrastive": stage.recipe.contrastive_weight, "caption": stage.recipe.caption_weight
    }  # fmt: skip
    sums = {SELECTION: sum(weight * test.get(name, 0.0) for name, weight in weights.items())}
    if "caption" in test:
        sums["perplexity"] = math.exp(min(test["caption"], 700.0))
    for name, value in sums.items():
        if not _close(test.get(name, math.nan), value, RELATIVE):
            yield f"test/{name} is {test.get(name)}, by the other losses {value:.6g}"


def _close(a: float, b: float, tolerance: float) -> bool:
    """Return whether two metrics agree; one that is no number does, with another such."""
    return math.isclose(a, b, rel_tol=tolerance) or (math.isnan(a) and math.isnan(b))


def _other_lines(name: str, bundled: str, recomputed: str) -> list[str]:
    ours, theirs = recomputed.splitlines(), bundled.splitlines()
    if not bundled:
        return [f"{name} is missing"]
    if len(ours) != len(theirs):
        return [f"{name} has {len(theirs)} lines, recomputed {len(ours)}"]
    return [
        f"{name}, line {i}: {_around(a, b)!r}, recomputed {_around(b, a)!r}"
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True), 1)
        if a != b
    ]


def _around(text: str, other: str) -> str:
    """Return the part of a line where it begins to differ: a page's may have a whole picture."""
    pairs = enumerate(zip(text, other, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    return text[max(0, first - AROUND) : first + AROUND]


def _other_numbers(name: str, bundled: str, recomputed: str) -> list[str]:
    theirs, ours = (list(csv.reader(text.splitlines())) for text in (bundled, recomputed))
    if not bundled:
        return [f"{name} is missing"]
    if [len(row) for row in theirs] != [len(row) for row in ours]:
        return [f"{name} has other rows or columns than are recomputed"]
    return [
        f"{name}, row {i}, {ours[0][j]}: {mine!r}, recomputed {yours!r}"
        for i, (row, other) in enumerate(zip(theirs, ours, strict=True))
        for j, (mine, yours) in enumerate(zip(row, other, strict=True))
        if not _same(mine, yours)
    ]


def _same(a: str, b: str) -> bool:
    """Return whether two texts are equal, or the same number as far as machines agree."""
    if a == b:
        return True
    try:
        return math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=RELATIVE)
    except ValueError:
        return False

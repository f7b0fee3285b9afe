"""A report's numbers recomputed by R from the ledger (pytest -m peer; needs r-cran-jsonlite)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from studies import finish, planned

from ablate.analysis.results import make_results
from ablate.report.build import write_report

SCRIPT = Path(__file__).parents[2] / "support" / "recompute.R"


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="needs Rscript")
@pytest.mark.parametrize("noise", [0.3, 9.0])
def test_r_finds_the_numbers_of_a_report(noise: float, shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes)
    finish(plan, ledger, noise=noise)
    write_report(plan, ledger)

    def recompute() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["Rscript", str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=120
        )

    done = recompute()
    assert done.returncode == 0, done.stdout + done.stderr
    (effect, *_) = make_results(plan, ledger).effects
    table = tmp_path / "effects.csv"
    text = table.read_text(encoding="utf-8")
    changed = text.replace(repr(effect.p), repr(effect.p + 2e-9), 1)
    assert changed != text
    table.write_text(changed, encoding="utf-8")
    done = recompute()
    assert done.returncode == 1
    assert "1 of 36 differ" in done.stdout  # it would see an error

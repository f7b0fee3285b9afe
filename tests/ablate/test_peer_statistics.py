"""A report's numbers recomputed by R from the ledger (pytest -m peer; needs r-cran-jsonlite)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from studies import finish, planned

from ablate.findings import make_findings
from ablate.report import write_report

SCRIPT = Path(__file__).parents[1] / "support" / "recompute.R"


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
    words = {e.verdict for e in make_findings(plan, ledger).effects}
    assert len(words) > 1  # studies of several verdicts were compared
    table = tmp_path / "effects.csv"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("equivalent", "improved", 1), encoding="utf-8")
    done = recompute()
    assert done.returncode == 1
    assert "1 of 36 differ" in done.stdout

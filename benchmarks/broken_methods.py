"""Would the default tests notice? `python benchmarks/broken_methods.py` breaks each method in turn.

Each break is made in a copy of the project, where the tests of the calibration and of the
statistics run. Writes broken_methods.json beside itself: which tests failed, none being a fault of
the tests. Exits with 1 if some break went unnoticed.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).parents[1]
TESTED = ("calibration", "tests_and_intervals", "factorial", "effects")
TESTS = [f"tests/ablate/stats/test_{name}.py" for name in TESTED]
IGNORED = shutil.ignore_patterns(".git", ".venv", "studies", "mlruns", "mlartifacts", "*.db")
STATISTICS, EFFECTS, FACTORIAL, SEQUENTIAL, RACE = (
    f"ablate/stats/{name}.py"
    for name in ("tests_and_intervals", "effects", "factorial", "sequential", "race")
)

Break = tuple[str, str, str, str]  # what is broken, in which file, what stands there, and instead
BREAKS: list[Break] = [
    ("p is not adjusted", EFFECTS, "p_adjusted=adjusted[e.contrast]", "p_adjusted=e.p"),
    ("the primary has all of alpha", STATISTICS, "min(1.0, primary / share), [", "primary, ["),
    ("the others have all of alpha", STATISTICS, "min(1.0, p / (1 - share)) for", "p for"),
    ("a one-sided p is called two-sided", STATISTICS, "min(1.0, 2 * min(", "min(1.0, 1 * min("),
    ("normal quantiles for Student's", STATISTICS, "special.stdtrit(freedom, (1 + confidence) / 2)",
     "special.ndtri((1 + confidence) / 2)"),
    ("a deviation divided by n", STATISTICS, "values.std(ddof=1)) / math", "values.std()) / math"),
    ("equivalence by one of the two tests", STATISTICS, "return max(one_sided_p(values, -margin)",
     "return min(one_sided_p(values, -margin)"),
    ("power from normal quantiles", STATISTICS, "critical = t_quantile(freedom, 1 - alpha)",
     "critical = float(special.ndtri(1 - alpha / 2))"),
    ("errors over examples alone", STATISTICS, "variance(by_both.ravel()), *parts)",
     "sum(parts), parts[1])"),
    ("the quantile of the fewer", STATISTICS, "np.average(quantiles, weights=parts) if any(parts) "
     "else max(quantiles)", "max(quantiles)"),
    ("a ratio's reference taken as constant", STATISTICS,
     "1 - ratio + (ratio * reference - candidate) / reference.mean()",
     "(reference - candidate) / reference.mean()"),
    ("pairing by order, not by seed", EFFECTS, "improvement(losses[a, seed], losses[b, seed]",
     "improvement(losses[a, min(s for c, s in losses if c == a)], losses[b, seed]"),
    ("all orders of swaps weigh alike", FACTORIAL,
     "math.factorial(before) * math.factorial(count - before - 1)", "math.factorial(count) / 4"),
    ("terms have one pooled error", FACTORIAL,
     "terms=_adjusted({t: _part(_name(t), values, rule) for t, values in terms(gains).items()})",
     "terms=__import__('pooled_terms').pooled_terms(gains)"),
    ("looks are not adjusted for", SEQUENTIAL, "return min(1.0, smallest, rank / len(found))",
     "return float(min(test(values[:n]) for n in reached))"),
    ("a race's intervals are of one look", EFFECTS,
     "return 1 - level(rule.looks, seeds) if rule.looks else CONFIDENCE", "return CONFIDENCE"),
    ("a race drops nothing as futile", RACE, "FUTILE = 0.1 ", "FUTILE = 0.0 "),
    ("nothing is broken", STATISTICS, "ALPHA = 0.05", "ALPHA = 0.05"),
]  # fmt: skip


def failed_tests(copy: Path) -> list[str]:
    """Return the names of the tests that fail in a copy of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return sorted(set(re.findall(r"^FAILED \S+?::(\w+)", done.stdout, re.MULTILINE)))


def main() -> int:
    """Break, test and mend, one method after the other."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "project"
        shutil.copytree(TOP, copy, ignore=IGNORED)
        for name, file, there, instead in BREAKS:
            text = (copy / file).read_text(encoding="utf-8")
            assert text.count(there) == 1, f"{name}: {file} has {text.count(there)} x {there!r}"
            (copy / file).write_text(text.replace(there, instead), encoding="utf-8")
            found[name] = failed_tests(copy)
            (copy / file).write_text(text, encoding="utf-8")
            print(name, "->", ", ".join(found[name]) or "no test failed", flush=True)
    about = {
        "device": f"cpu ({platform.machine()})",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    unbroken = found.pop("nothing is broken")
    result = {"about": about, "failed": found, "failed where nothing is broken": unbroken}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(unbroken) or not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())

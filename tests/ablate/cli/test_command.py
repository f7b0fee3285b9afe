"""The command `ablate`: quick help with examples, near misses, and one way out of every error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ablate.cli.arguments import COMMANDS
from ablate.cli.command import main, make_parsers
from ablate.cli.run_options import RunOptions
from ablate.core.grids import GRIDS
from ablate.stats.race import AIMS
from assemblies import SIZES
from assemblies.config import Match

HEAVY = {"torch", "ray", "mlflow", "pandas", "numpy", "matplotlib", "scipy", "optuna", "pydantic"}


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_light(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from ablate.cli.command import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "finally:\n"
        f"    print('heavy:', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
    if words:
        assert done.returncode == 0
        assert "example: ablate" in done.stdout
    else:
        assert done.returncode == 2


def test_both_entries_are_one_command() -> None:
    shown = [
        subprocess.run([sys.executable, "-m", *words, "--help"], capture_output=True, text=True)
        for words in (["ablate", "run"], ["ablate.run"])
    ]
    assert shown[0].stdout == shown[1].stdout
    assert shown[0].stdout.startswith("usage: ablate run ")


def test_the_help_names_every_grid_size_and_choice() -> None:
    _, parsers = make_parsers()
    text = " ".join(parsers["run"].format_help().split())
    for name in (*GRIDS, *SIZES, *AIMS, *Match.__args__):
        assert name in text, name
    metadata = RunOptions.__dataclass_fields__["match"].metadata["flag"]
    assert metadata.choices == Match.__args__


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    _, parsers = make_parsers()
    parsers[name].parse_args(COMMANDS[name].example.split())


@pytest.mark.parametrize(("words", "message"), [
    (["run", "--sedes", "3"], "no option named '--sedes'; did you mean '--seeds'?"),
    (["status", "x", "--jsno"], "did you mean '--json'?"),
    (["report", "a", "b"], "unexpected 'b' (see ablate report --help)"),
    (["status", "nowhere"], "'nowhere' is no study"),
])  # fmt: skip
def test_mistakes_are_a_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m ablate blocks list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("block")


def test_a_shell_completes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 0
    script = capsys.readouterr().out
    assert "--smallest-effect" in script
    assert "compare" in script

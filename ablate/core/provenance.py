"""Where numbers come from: code, versions and machine, as a study's plan notes them."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("coca-blocks", "torch", "ray", "optuna", "mlflow", "numpy", "scipy", "tokenizers")

SECRET_FIELD = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|passphrase|token|secret|api_?key|odbc_connect)=)[^&\s]*",
    re.IGNORECASE,
)


def launch_note(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what is to be known of one launch of a study, as plain data."""
    # Before they are quoted, which would make a password harder to find.
    words = map(without_passwords, arguments)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {
        "date": now.isoformat(),
        "command": shlex.join(["python", "-m", "ablate.run", *words]),
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
    }


def without_passwords(text: str) -> str:
    """Return a text with ``***`` for the passwords and tokens of the URIs in it.

    It may be handed on. Where a URI can be read in two ways, rather too much is left out.
    """
    return re.sub(r"([A-Za-z][\w+.-]*)://(\S*)", _hide, text)


def _hide(uri: re.Match[str]) -> str:
    scheme, rest = uri.groups()
    is_web = scheme.lower() in ("http", "https")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    # Unquoted passwords may hold any of these marks; then the host comes after the last @.
    named = "@" in authority or re.search(r":(?!\d*$)" if is_web else ":", authority)
    user, at, place = rest.rpartition("@") if named else ("", "", rest)
    name, colon, _ = user.partition(":")
    if colon:
        user = f"{name}:***"
    elif at and is_web:
        user = "***"  # a token: services take it in a name's place
    place = SECRET_FIELD.sub(r"\1***", place)
    return f"{scheme}://{user}{at}{place}"


def device_name() -> str:
    """Return the name of the device that trials train on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"cpu ({processor()})"


def processor() -> str:
    """Return the processor's name, as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_state(directory: Path) -> str:
    """Return the commit that a directory is at, ``+changes`` if edited, or "no repository"."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(directory), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return f"{commit}+changes" if ask("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return "no repository"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"

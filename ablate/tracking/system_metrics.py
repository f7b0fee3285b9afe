"""How busy this machine is: CPU, memory and GPUs, by the names that MLflow's UI knows."""

from __future__ import annotations

import shutil
import subprocess

import psutil

QUERY = "index,utilization.gpu,memory.used,memory.total"


def sample() -> dict[str, float]:
    """Return what can be known of the machine now; what cannot is left out.

    CPU use, in percent of all cores, is the mean since the last call in this process.
    """
    return _processor() | _graphics()


def _processor() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": float(memory.percent),
    }


def _graphics() -> dict[str, float]:
    """Ask NVIDIA's tool: torch would take memory of every GPU for a context in this process."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return read_graphics(answer.stdout)


def read_graphics(text: str) -> dict[str, float]:
    """Return the metrics in nvidia-smi's table; a GPU that tells no number is left out."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        try:
            index, busy, used, total = (float(word) for word in line.split(","))
        except ValueError:
            continue  # "[N/A]": a GPU that is partitioned
        name = f"system/gpu_{index:.0f}"
        values[f"{name}_utilization_percentage"] = busy
        values[f"{name}_memory_usage_megabytes"] = used * 2**20 / 1e6
        values[f"{name}_memory_usage_percentage"] = 100 * used / total
    return values

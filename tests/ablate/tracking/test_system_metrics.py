from __future__ import annotations

import os
from pathlib import Path

import pytest

from ablate.tracking import system_metrics as machine

TABLE = "0, 87, 1024, 81559\n1, 3, 0, 81559\n2, [N/A], [N/A], 81559\n"


def test_a_sample_has_cpu_and_memory() -> None:
    found = machine.sample()
    assert 0 < found["system/system_memory_usage_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] > 10
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{TABLE}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = {name: value for name, value in machine.sample().items() if "gpu" in name}
    assert found == machine.read_graphics(TABLE)
    assert found["system/gpu_0_utilization_percentage"] == 87
    assert found["system/gpu_0_memory_usage_megabytes"] == pytest.approx(1073.741824)
    assert found["system/gpu_1_memory_usage_percentage"] == 0
    assert not any("gpu_2" in name for name in found)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert not any("gpu" in name for name in machine.sample())

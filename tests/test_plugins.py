"""The shipped plugins: formulas, the contract, and real installation through pip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from samples import SMALL

from blocks import Positions, Registry, Site, load_registry
from blocks.auxiliary import collect_auxiliary_losses
from blocks.testing import contract

ROOT = Path(__file__).parents[1]
PLUGINS = {
    "dyt": "norm/dyt",
    "moe_ffn": "ffn/moe",
    "differential_attention": "attention/differential",
    "placebo_norm": "norm/placebo",
}
SITE = Site(dim=16, heads=4, hidden=24)


def load() -> Registry:
    files = [str(ROOT / "plugins" / name / f"{name}.py") for name in PLUGINS]
    return load_registry(files, entry_points=False)


@contract(load().third_party())
def test_plugins_keep_the_contract(check: Callable[[], None]) -> None:
    check()


def build(kind: str, spelling: str, site: Site = SITE) -> torch.nn.Module:
    torch.manual_seed(0)
    return load().build(kind, spelling, site)


def test_each_folder_is_a_distribution_with_an_entry_point_a_test_and_a_readme() -> None:
    assert {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()} == set(PLUGINS)
    for name, block in PLUGINS.items():
        folder = ROOT / "plugins" / name
        assert f'{name} = "{name}"' in (folder / "pyproject.toml").read_text()
        assert "@contract" in (folder / f"test_{name}.py").read_text()
        assert f"python -m blocks show {block}" in (folder / "README.md").read_text()


def test_dyt_is_the_formula() -> None:
    x, dyt = torch.randn(2, 5, 16), build("norm", "dyt(alpha=0.7)")
    torch.testing.assert_close(dyt(x), torch.tanh(0.7 * x))


def test_the_placebo_is_rmsnorm() -> None:
    x = torch.randn(2, 5, 16) * 7
    placebo, rms = build("norm", "placebo"), build("norm", "rmsnorm")
    torch.testing.assert_close(placebo(x), rms(x), atol=1e-6, rtol=1e-5)


def test_moe_is_the_weighted_sum_of_the_chosen_experts() -> None:
    moe, x = build("ffn", "moe(experts=4, top_k=2)").eval(), torch.randn(2, 3, 16)
    for b in range(2):
        for n in range(3):
            token = x[b, n]
            share = (moe.router.weight @ token).softmax(0)
            best = share.topk(2)
            expected = torch.zeros(16)
            for weight, expert in zip(best.values, best.indices, strict=True):
                gate, value = (token @ moe.enter[expert]).chunk(2)
                answer = (F.gelu(gate) * value) @ moe.leave[expert]
                expected += weight / best.values.sum() * answer
            torch.testing.assert_close(moe(x)[b, n], expected, atol=1e-5, rtol=1e-4)


def test_moe_reports_its_balance_while_training_only() -> None:
    moe, x = build("ffn", "moe(top_k=1, balance=0.5)"), torch.randn(4, 50, 16)
    moe.eval()(x)
    assert collect_auxiliary_losses(moe) == {}
    moe.train()(x)
    found = collect_auxiliary_losses(moe)
    assert set(found) == {"balance"}
    balanced = found["balance"].item()
    assert 0.45 < balanced < 1.5  # 1 is perfect balance, 4 the worst, times the weight
    with torch.no_grad():
        moe.router.weight[0] = 20.0
    moe(x.abs())
    assert collect_auxiliary_losses(moe)["balance"].item() > balanced
    assert collect_auxiliary_losses(moe) == {}


def test_differential_attention_is_the_difference_of_two_maps() -> None:
    block, x = build("attention", "differential(initial=0.3)"), torch.randn(2, 5, 16)
    k, v = block.key_value(x).chunk(2, -1)
    q, k = (t.view(2, 5, 4, 4).transpose(1, 2) for t in (block.query(x), k))
    v = v.view(2, 5, 2, 8).transpose(1, 2)
    maps = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    a, b, c, d = block.lambdas
    amount = (a @ b).exp() - (c @ d).exp() + 0.3
    y = (maps[:, 0::2] - amount * maps[:, 1::2]) @ v
    y = y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * 0.7
    expected = block.leave(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_differential_attention_works_with_every_positional_embedding() -> None:
    registry, x = load(), torch.randn(2, 6, 16)
    site = Site(dim=16, heads=4, grid=(2, 3))
    for name in registry.names("position"):
        positions = registry.build("position", name, site)
        assert isinstance(positions, Positions)
        block = registry.build("attention", "differential", site)
        assert block(x, positions=positions).shape == x.shape


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install all shipped plugins through pip; returns the environment that sees them."""
    target = tmp_path_factory.mktemp("site")
    folders = [str(ROOT / "plugins" / name) for name in PLUGINS]
    return pip_install(target, *folders)


def pip_install(target: Path, *folders: str) -> dict[str, str]:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*command, *folders], check=True, capture_output=True, text=True)
    return {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}


def python(environment: dict[str, str], *arguments: str, cwd: Path | None = None) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_installed_plugins_are_known_and_enter_the_grids(installed: dict[str, str]) -> None:
    listed = python(installed, "blocks", "list")
    for name, block in PLUGINS.items():
        assert re.search(rf"{block} .* {name} ", listed), f"{block} is not from plugin {name}"
    settings = [f"--set={k}={v}" for k, v in {**SMALL, "data": "embedded:stamps"}.items()]
    plan = python(installed, "ablate.run", "--grid", "full", "--plan", *settings)
    for cell in ("norm=dyt", "norm=placebo", "ffn=moe", "ffn=moe(top_k=1)",
                 "attention=differential"):  # fmt: skip
        assert f"grr {cell} " in plan


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugins_own_test_passes(name: str, installed: dict[str, str]) -> None:
    shown = python(installed, "pytest", "-q", str(ROOT / "plugins" / name))
    assert " passed" in shown


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["norm", "ffn", "position", "attention", "pooling"])
def test_a_new_plugin_installs_passes_its_test_and_enters_a_grid(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "plugin"
    python(dict(os.environ), "blocks", "new", kind, f"my_{kind}", str(folder))
    environment = pip_install(tmp_path / "site", str(folder))
    assert " passed" in python(environment, "pytest", "-q", ".", cwd=folder)
    settings = [f"--set={k}={v}" for k, v in {**SMALL, "data": "embedded:stamps"}.items()]
    plan = python(environment, "ablate.run", "--grid", "each", "--plan", *settings)
    assert f"grr {kind}=my_{kind} " in plan

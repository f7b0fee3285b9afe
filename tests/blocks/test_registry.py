from __future__ import annotations

import sys
from pathlib import Path

import pytest

from blocks import BlockSpec, Registry, Site, UsageError, default_registry, load_registry, parse
from blocks.__main__ import main
from blocks.norms import RMSNorm

PLUGIN = """
from blocks import BlockSpec, hookimpl
from blocks.norms import RMSNorm

class Mine(RMSNorm):
    "A norm."

@hookimpl
def register_blocks():
    return [BlockSpec(kind={kind!r}, name={name!r}, factory=Mine, summary="mine", source="here",
                      sweep={sweep!r})]
"""


def plugin(path: Path, *, kind: str = "norm", name: str = "mine", sweep: object = ()) -> str:
    path.write_text(PLUGIN.format(kind=kind, name=name, sweep=dict(sweep)))  # type: ignore[call-overload]
    return str(path)


def test_a_plugin_file_adds_its_block(tmp_path: Path) -> None:
    registry = load_registry([plugin(tmp_path / "mine.py")])
    assert "mine" in registry.names("norm")
    assert [spec.name for spec in registry.third_party()] == ["mine"]
    assert registry.fingerprint() != default_registry().fingerprint()


def test_a_named_file_twice_is_one_plugin(tmp_path: Path) -> None:
    file = plugin(tmp_path / "mine.py")
    assert load_registry([file, file]).names("norm").count("mine") == 1


def test_duplicates_name_both_plugins(tmp_path: Path) -> None:
    first, second = plugin(tmp_path / "one.py"), plugin(tmp_path / "two.py")
    with pytest.raises(UsageError, match=r"norm/mine is provided by both .*one\.py.*two\.py"):
        load_registry([first, second])
    with pytest.raises(UsageError, match="norm/rmsnorm is provided by both 'blocks' and"):
        load_registry([plugin(tmp_path / "three.py", name="rmsnorm")])


@pytest.mark.parametrize(("source", "message"), [
    ("import nothing_of_this_name", "does not import: ModuleNotFoundError"),
    ("def f(:", "does not import: SyntaxError"),
    ("x = 1", "has no function register_blocks"),
    ("def register_blocks():\n    return []", "put @hookimpl"),
    ("from blocks import hookimpl\n@hookimpl\ndef register_blocks():\n    return [1]",
     "must return BlockSpecs, got int"),
    ("from blocks import hookimpl\n@hookimpl\ndef register_blocks():\n    return 1 / 0",
     "register_blocks failed: ZeroDivisionError"),
    ("from blocks import hookimpl\n@hookimpl\ndef register_block():\n    return []\n"
     "def register_blocks():\n    return []", "unknown hook 'register_block'"),
])  # fmt: skip
def test_bad_plugins_are_errors_that_name_them(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(UsageError, match=message) as caught:
        load_registry([str(file)])
    assert "bad" in str(caught.value)


def test_missing_plugins_are_errors() -> None:
    with pytest.raises(UsageError, match=r"plugin file 'nowhere/x\.py' does not exist"):
        load_registry(["nowhere/x.py"])
    with pytest.raises(UsageError, match="plugin module 'no_such_module' does not import"):
        load_registry(["no_such_module"])


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "nrom"}, "no kind named 'nrom'; did you mean 'norm'"),
    ({"name": "My-Norm"}, "lower-case letters"),
    ({"sweep": {"epz": (1.0,)}}, "no option named 'epz'; did you mean 'eps'"),
    ({"sweep": {"eps": ("a",)}}, "eps='a' is str, must be float"),
])  # fmt: skip
def test_bad_specs_are_refused_at_once(change: dict[str, object], message: str) -> None:
    fields = {"kind": "norm", "name": "x", "factory": RMSNorm, "summary": "", "source": ""}
    with pytest.raises(UsageError, match=message):
        BlockSpec(**{**fields, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "normal"), [
    ("rope", "rope"),
    ("rope()", "rope"),
    ("rope(theta=10000)", "rope"),
    (" rope( theta = 1e2 ) ", "rope(theta=100.0)"),
])  # fmt: skip
def test_spellings_have_one_normal_form(given: str, normal: str) -> None:
    registry = default_registry()
    assert registry.normalise("position", given) == normal
    assert registry.normalise("position", normal) == normal


@pytest.mark.parametrize("text", ["", "rope(", "rope(1)", "rope(theta=x)", "a.b", "rope(**{})",
                                  "__import__('os').system('true')"])  # fmt: skip
def test_malformed_spellings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read block"):
        parse(text)


@pytest.mark.parametrize(("kind", "spelling", "message"), [
    ("norm", "rmsnrm", r"no norm named 'rmsnrm'; did you mean 'rmsnorm'\? \(known: "),
    ("norm", "rmsnorm(epz=1)", "no option named 'epz'; did you mean 'eps'"),
    ("norm", "rmsnorm(eps='x')", "eps='x' is str, must be float"),
    ("norm", "layernorm(bias=1)", "bias=1 is int, must be bool"),
    ("nomr", "rmsnorm", "no kind named 'nomr'; did you mean 'norm'"),
])  # fmt: skip
def test_errors_have_the_near_miss(kind: str, spelling: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        default_registry().normalise(kind, spelling)


def test_order_is_sorted_and_not_that_of_registration() -> None:
    registry = Registry()
    for name in ("b", "a"):
        registry.add(
            BlockSpec(kind="norm", name=name, factory=RMSNorm, summary="", source=""), "test"
        )
    assert [spec.name for spec in registry] == ["a", "b"]


def test_a_block_without_readable_source_cannot_be_attributed() -> None:
    namespace: dict[str, object] = {"__name__": "nowhere"}
    exec("class Ghost:\n    def __init__(self, site): pass", namespace)
    registry = Registry()
    ghost = BlockSpec(kind="norm", name="ghost", factory=namespace["Ghost"], summary="", source="")  # type: ignore[arg-type]
    registry.add(ghost, "test")
    with pytest.raises(UsageError, match="its source cannot be read"):
        registry.source_hash("norm", "ghost")


def test_site_counts_tokens_and_head_width() -> None:
    site = Site(dim=24, heads=3, grid=(4, 5))
    assert (site.tokens, site.head_dim) == (20, 8)


def test_the_shipped_plugin_folder_works_as_a_file() -> None:
    folder = Path(__file__).parents[2] / "plugins"
    registry = load_registry([str(folder / "dyt" / "dyt.py")])
    assert "dyt" in registry.names("norm")
    assert any(getattr(m, "__file__", "") == str(folder / "dyt" / "dyt.py")
               for m in list(sys.modules.values()))  # fmt: skip


def install(site: Path, distribution: str, version: str, point: str, module: str) -> None:
    """Lay out what pip leaves behind for a distribution with one entry point."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(f"[coca_blocks]\n{point} = {module}\n")


def test_installed_plugins_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path / "plugin_found_here.py", name="found")
    install(tmp_path, "some-blocks", "1.0", "some", "plugin_found_here")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry()
    assert registry.provider("norm", "found") == "some"
    named = load_registry([str(tmp_path / "plugin_found_here.py")])
    assert named.names("norm").count("found") == 1


def test_one_entry_point_name_twice_names_both_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "one-blocks", "1.0", "same", "one")
    install(tmp_path, "two-blocks", "1.0", "same", "two")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"'same': (one|two)-blocks and (one|two)-blocks"):
        load_registry()


def test_two_versions_of_one_plugin_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        install(tmp_path / version, "some-blocks", version, "some", "nothing")
        monkeypatch.syspath_prepend(tmp_path / version)
    with pytest.raises(UsageError, match=r"two versions of plugin 'some' are installed: 2\.0 in"):
        load_registry()


def test_a_broken_plugin_leaves_the_others_for_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugin_that_breaks.py").write_text("raise RuntimeError('no')")
    install(tmp_path, "broken-blocks", "1.0", "broken", "plugin_that_breaks")
    monkeypatch.syspath_prepend(tmp_path)
    good = plugin(tmp_path / "good.py")
    with pytest.raises(UsageError, match=r"installed plugin 'broken' \(from broken-blocks\)"):
        load_registry([good])
    assert main(["--plugin", good, "list"]) == 2
    shown = capsys.readouterr()
    assert "norm/mine" in shown.out
    assert "installed plugin 'broken' (from broken-blocks) does not import" in shown.err

"""Finds plugins, collects their blocks, and answers every question about a block by name."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from torch import nn

from blocks import attention, ffns, hookspecs, norms, pooling, positions, source
from blocks.errors import UsageError, unknown
from blocks.site import Site
from blocks.spec import KINDS, BlockSpec, parse

BUILTIN_MODULES: tuple[ModuleType, ...] = (norms, ffns, positions, attention, pooling)
BUILTIN = "blocks"


class Registry:
    """The known blocks by (kind, name), each with the plugin that provides it."""

    def __init__(self) -> None:
        self._specs: dict[tuple[str, str], tuple[BlockSpec, str]] = {}

    def add(self, spec: BlockSpec, provider: str) -> None:
        """Register a block; a second one of the same kind and name is an error naming both."""
        key = (spec.kind, spec.name)
        if key in self._specs:
            raise UsageError(
                f"{spec.kind}/{spec.name} is provided by both {self._specs[key][1]!r} "
                f"and {provider!r}; rename one of them"
            )
        spec.options  # noqa: B018  (reading the signature now reports a bad factory now)
        self._specs[key] = (spec, provider)

    def get(self, kind: str, spelling: str) -> BlockSpec:
        """Return the block that a spelling names; raises with the near miss."""
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
        name, _ = parse(spelling)
        if (kind, name) not in self._specs:
            raise unknown(kind, name, self.names(kind))
        return self._specs[kind, name][0]

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind, sorted."""
        return sorted(name for k, name in self._specs if k == kind)

    def provider(self, kind: str, name: str) -> str:
        """Return the plugin that a block comes from (``blocks`` for the built-in ones)."""
        return self._specs[kind, name][1]

    def __iter__(self) -> Iterator[BlockSpec]:
        """Iterate over all blocks in a fixed order: by kind, then by name."""
        return iter(self.get(kind, name) for kind in KINDS for name in self.names(kind))

    def third_party(self) -> list[BlockSpec]:
        """Return the blocks that plugins add to the built-in ones."""
        return [spec for spec in self if self.provider(spec.kind, spec.name) != BUILTIN]

    def normalise(self, kind: str, spelling: str) -> str:
        """Return the one normal spelling of a block; checks its name and options."""
        return self.get(kind, spelling).spell(parse(spelling)[1])

    def build(self, kind: str, spelling: str, site: Site) -> nn.Module:
        """Build a block for a site."""
        return self.get(kind, spelling).build(site, parse(spelling)[1])

    def source_hash(self, kind: str, spelling: str) -> str:
        """Return a hash of a block's source, and of all of its distribution that this reaches."""
        factory = self.get(kind, spelling).factory
        target = factory.func if isinstance(factory, functools.partial) else factory
        file = getattr(sys.modules.get(target.__module__), "__file__", None)
        if not file or not Path(file).is_file():
            raise UsageError(
                f"{kind}/{spelling}: its source cannot be read, so no result could be attributed "
                "to it; define it in a file"
            )
        # A class that a function makes, and whatever else is not at the top level, is in that.
        name = target.__qualname__.partition(".")[0]
        return source.definition_hash(target.__module__, Path(file), name)

    def fingerprint(self) -> str:
        """Return a hash over all names and sources; equal in two processes with the same blocks."""
        lines = [f"{s.kind}/{s.name} {self.source_hash(s.kind, s.name)}" for s in self]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_registry(
    plugins: Iterable[str] = (),
    *,
    entry_points: bool = True,
    problems: list[UsageError] | None = None,
) -> Registry:
    """Collect built-in, installed and named blocks; ``plugins`` are files or module names.

    A plugin that cannot be loaded raises `UsageError`; with a list for ``problems`` the error is
    put there instead, and the other plugins still load.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for module in BUILTIN_MODULES:
        manager.register(module, name=module.__name__)
    loaders: dict[str, Callable[[], object]] = dict(_installed() if entry_points else ())
    loaders |= {plugin: functools.partial(_import, plugin) for plugin in plugins}
    for name, load in loaders.items():
        try:
            plugin = load()
            if not manager.is_registered(plugin):  # named on the command line and installed: once
                _register(manager, plugin, name)
        except UsageError as error:
            if problems is None:
                raise
            problems.append(error)
    return _collect(manager, problems)


@functools.lru_cache(maxsize=8)
def default_registry(plugins: tuple[str, ...] = ()) -> Registry:
    """Return the registry of built-in and installed blocks, made once per process."""
    return load_registry(plugins)


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    if not hasattr(plugin, "register_blocks"):
        raise UsageError(f"plugin {name!r} has no function register_blocks; see docs/plugins.md")
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise UsageError(f"plugin {name!r}: {error}") from None
    if name not in [impl.plugin_name for impl in manager.hook.register_blocks.get_hookimpls()]:
        raise UsageError(f"plugin {name!r}: put @hookimpl (from blocks) above register_blocks")


def _collect(manager: pluggy.PluginManager, problems: list[UsageError] | None) -> Registry:
    registry = Registry()
    builtin = {module.__name__ for module in BUILTIN_MODULES}
    implementations = manager.hook.register_blocks.get_hookimpls()
    for implementation in sorted(
        implementations, key=lambda i: (i.plugin_name not in builtin, i.plugin_name)
    ):
        name = implementation.plugin_name
        try:
            for spec in _specs_of(name, implementation.function):
                registry.add(spec, BUILTIN if name in builtin else name)
        except UsageError as error:
            if problems is None:
                raise
            problems.append(error)
    return registry


def _specs_of(name: str, function: Callable[[], Any]) -> list[BlockSpec]:
    try:
        specs = function()
    except UsageError as error:
        raise UsageError(f"plugin {name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"plugin {name!r}: register_blocks failed: {_named(error)}") from error
    found = list(specs) if isinstance(specs, list | tuple) else [specs]
    for spec in found:
        if not isinstance(spec, BlockSpec):
            kind = type(spec).__name__
            raise UsageError(f"plugin {name!r}: register_blocks must return BlockSpecs, got {kind}")
    return found


def _installed() -> Iterator[tuple[str, Callable[[], object]]]:
    """Find installed plugins.

    By ourselves: pluggy silently drops the second of two equal names, importlib.metadata the
    second of two versions.
    """
    seen: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        for point in distribution.entry_points.select(group=hookspecs.PROJECT):
            first = seen.setdefault(point.name, distribution)
            _refuse_two(point.name, first, distribution)
            if first is distribution:
                yield point.name, functools.partial(_load_point, point, distribution.name)


def _refuse_two(
    name: str, first: importlib.metadata.Distribution, second: importlib.metadata.Distribution
) -> None:
    if first.name != second.name:
        raise UsageError(
            f"two installed plugins are named {name!r}: {first.name} and {second.name}; "
            "uninstall one"
        )
    if first.version != second.version:
        where = " and ".join(f"{d.version} in {d.locate_file('')}" for d in (first, second))
        raise UsageError(f"two versions of plugin {name!r} are installed: {where}; uninstall one")


def _load_point(point: importlib.metadata.EntryPoint, distribution: str) -> object:
    try:
        return point.load()
    except Exception as error:
        raise UsageError(
            f"installed plugin {point.name!r} (from {distribution}) does not import: {error!r}"
        ) from error


def _import(plugin: str) -> ModuleType:
    """Import a plugin given as a file or as a module's dotted name."""
    path = Path(plugin).expanduser()
    is_file = plugin.endswith(".py") or path.exists() or "/" in plugin
    try:
        if not is_file:
            return importlib.import_module(plugin)
        if path.exists() and not (path.is_file() and path.suffix == ".py"):
            raise UsageError(f"plugin {plugin!r} is no Python file; name its .py file or a module")
        if not path.is_file():
            raise UsageError(f"plugin file {plugin!r} does not exist (give a .py file or a module)")
        return _import_file(path.resolve())
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        what = "file" if is_file else "module"
        raise UsageError(f"plugin {what} {plugin!r} does not import: {_named(error)}") from error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _import_file(path: Path) -> ModuleType:
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and hasattr(module, "register_blocks"):
            return module  # installed, or named before: one module, hence no false duplicate
    name = f"{source.FROM_FILE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

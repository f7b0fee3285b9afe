"""What a block's numbers depend on, as source: its definition, and all that this reaches.

A result is kept under a hash of the source that computed it. A hash of whole files would change
with every unrelated block beside it, and would miss a helper in another file. So names are followed
from definition to definition, through imports, as far as a distribution (or a plugin's folder)
goes. Docstrings and comments do not count, and annotations are not followed: they compute nothing.
Where a name cannot be followed (a star import, a module that is handed on as a value), the whole
module counts: rather too much than too little.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import io
import tokenize
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WHOLE = "*"  # instead of a name: everything in the module
EFFECTS = ""  # instead of a name: what runs when the module is imported, and binds nothing
NOT_FOLLOWED = {"blocks.errors", "blocks.registry"}  # they refuse and find, and compute nothing
INSTALLED = {"site-packages", "dist-packages"}
LIBRARY = Path(__file__).parents[1]
FROM_FILE = "coca_blocks_plugin_"  # before the name of a module that a plugin's file is loaded as
Definition = tuple[Path, str]  # a module's file and a name at its top level
Statement = ast.stmt


@dataclass(frozen=True)
class Import:
    """What a local name stands for: a module, or a name in a module."""

    module: str
    """The module's dotted name, absolute."""

    name: str = ""
    """The name in it; empty for the module itself."""


class Module:
    """A parsed file: its top-level statements by the names that they bind, and its imports."""

    def __init__(self, path: Path, package: str) -> None:
        self.path, self.package = path, package
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.bound: dict[str, list[Statement]] = {}
        self.effects: list[Statement] = []
        self.imports: dict[str, Import] = {}
        for statement in self.tree.body:
            self._take(statement)

    def _take(self, statement: Statement) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.imports |= imports_of(statement, self.package)
        elif is_for_type_checkers(statement):
            assert isinstance(statement, ast.If)
            for imported in statement.body:
                self.imports |= imports_of(imported, self.package)
        elif is_main_guard(statement) or is_docstring(statement):
            return
        elif names := bound_names(statement):
            for inner in ast.walk(statement) if is_compound(statement) else ():
                self.imports |= imports_of(inner, self.package)  # try: import fast_ops
            for name in names:
                self.bound.setdefault(name, []).append(statement)
        else:
            # What runs on import without binding a name: torch.set_flush_denormal(True).
            self.effects.append(statement)

    def source(self, statement: Statement) -> str:
        """Return a statement's source without comments, docstrings and empty lines."""
        first = min(
            [statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))]
        )
        lines = self.text.splitlines()[first - 1 : statement.end_lineno]
        for node in ast.walk(statement):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = node.body[0]
                if is_docstring(inner) and len(node.body) > 1:
                    for number in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1):
                        lines[number - first] = ""
        return without_comments("\n".join(lines))


def is_compound(statement: Statement) -> bool:
    """Return whether a statement holds others that run when the module is imported."""
    return isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While)


def is_docstring(statement: Statement) -> bool:
    """Return whether a statement is a text that stands by itself: a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_for_type_checkers(statement: Statement) -> bool:
    """Return whether a statement is ``if TYPE_CHECKING``, which never runs."""
    names = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(statement, ast.If) and ast.unparse(statement.test) in names


def is_main_guard(statement: Statement) -> bool:
    """Return whether a statement runs in scripts only."""
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def bound_names(statement: Statement) -> set[str]:
    """Return the names that a top-level statement binds, in all of its branches."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    names = {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return names


def imports_of(statement: ast.AST, package: str) -> dict[str, Import]:
    """Return what an import statement makes of local names; ``*`` for a star import."""
    if isinstance(statement, ast.Import):
        plain = [alias.name for alias in statement.names if alias.asname is None]
        return {
            **{name.partition(".")[0]: Import(name.partition(".")[0]) for name in plain},
            **{alias.asname or alias.name: Import(alias.name) for alias in statement.names},
        }
    if not isinstance(statement, ast.ImportFrom):
        return {}
    module = statement.module or ""
    if statement.level:
        above = package.split(".")[: len(package.split(".")) - statement.level + 1]
        module = ".".join([*above, *([module] if module else [])])
    return {alias.asname or alias.name: Import(module, alias.name) for alias in statement.names}


def without_comments(text: str) -> str:
    """Return source without comments and without empty lines."""
    lines = text.splitlines()
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, IndentationError):  # a part of a statement: it stays as it is
        tokens = []
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def used_names(statement: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield the names that a statement uses, with the attributes after them: ``("F", "silu")``.

    Annotations are left out: they compute nothing.
    """
    stack: list[ast.AST] = [statement]
    while stack:
        node = stack.pop()
        chain: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield (inner.id, *reversed(chain))
            continue
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns"):
                continue
            children = value if isinstance(value, list) else [value]
            stack += [child for child in children if isinstance(child, ast.AST)]


class Sources:
    """Follows names through the modules of which ``find`` knows the file."""

    def __init__(self, find: Callable[[str], Path | None]) -> None:
        self.find = find
        self.reached: dict[Definition, str] = {}

    def reach(self, path: Path, package: str, name: str) -> None:
        """Take a definition and all that it reaches."""
        stack = [(path, package, name)]
        while stack:
            path, package, name = stack.pop()
            if (path, name) in self.reached:
                continue
            module = parsed(path, package)
            statements = self._statements(module, name)
            self.reached[path, name] = "\n".join(map(module.source, statements))
            # Whatever is imported on the way runs, and may set a flag of torch.
            stack.append((path, package, EFFECTS))
            if name == EFFECTS:
                for target in module.imports.values():
                    stack += [(p, q, EFFECTS) for p, q, _ in self._target(target, ())]
            for statement in statements:
                stack += self._followed(statement, module)
            if name in module.imports:  # handed on from another module
                stack += self._target(module.imports[name], ())

    def _statements(self, module: Module, name: str) -> list[Statement]:
        if name == WHOLE:
            return [s for s in module.tree.body if not is_docstring(s)]
        return module.effects if name == EFFECTS else module.bound.get(name, [])

    def _followed(self, statement: Statement, module: Module) -> Iterator[tuple[Path, str, str]]:
        """Yield the definitions that a statement uses."""
        imports = dict(module.imports)
        for node in ast.walk(statement):
            imports |= imports_of(node, module.package)
        if WHOLE in imports:
            yield from self._target(imports[WHOLE], ())
        for name, *attributes in used_names(statement):
            if name in module.bound:
                yield module.path, module.package, name
            for length in range(len(attributes), -1, -1):
                local = ".".join([name, *attributes[:length]])
                if local in imports:
                    yield from self._target(imports[local], tuple(attributes[length:]))
                    break

    def _target(
        self, target: Import, attributes: tuple[str, ...]
    ) -> Iterator[tuple[Path, str, str]]:
        """Yield the definition that an import, with attributes after it, stands for."""
        dotted, name = target.module, target.name
        if name and self._is_module(dotted, name):
            dotted, name = f"{dotted}.{name}", ""
        rest = list(attributes)
        while not name and rest and self.find(f"{dotted}.{rest[0]}") is not None:
            dotted = f"{dotted}.{rest.pop(0)}"
        path = self.find(dotted)
        if path is None:
            return
        package = dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]
        yield path, package, name or (rest[0] if rest else WHOLE)

    def _is_module(self, package: str, name: str) -> bool:
        """Return whether a name of a package is its module, and nothing of its ``__init__``."""
        if self.find(f"{package}.{name}") is None:
            return False
        path = self.find(package)
        if path is None:
            return True
        module = parsed(path, package)
        return name not in module.bound and name not in module.imports


@functools.lru_cache(maxsize=1024)
def _parsed(path: Path, package: str, changed: int) -> Module:
    return Module(path, package)


def parsed(path: Path, package: str) -> Module:
    """Return a parsed file; it is read again only after it was changed."""
    return _parsed(path, package, path.stat().st_mtime_ns)


def find_below(root: Path, dotted: str) -> Path | None:
    """Return the file of a module below a folder: nothing is imported to find it."""
    parts = dotted.split(".")
    package, module = root.joinpath(*parts, "__init__.py"), root.joinpath(*parts[:-1])
    file = module / f"{parts[-1]}.py"
    return package if package.is_file() else file if file.is_file() else None


def hash_of(reached: dict[Definition, str]) -> str:
    """Return a hash of definitions, wherever their files are."""
    lines = [f"{path.name} {name}\n{text}" for (path, name), text in reached.items() if text]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def definition_hash(module: str, file: Path, name: str, library: Path = LIBRARY) -> str:
    """Return a hash of a definition and all of its own distribution, or folder, that it reaches.

    What it uses of this library counts too. ``file`` is the module's, ``library`` the folder that
    this package lies in.
    """
    depth = 0 if module.startswith(FROM_FILE) else module.count(".") + (file.stem == "__init__")
    root = file.parents[depth]
    siblings = _distribution_of(module.partition(".")[0]) if INSTALLED & {*root.parts} else None

    def find(dotted: str) -> Path | None:
        top = dotted.partition(".")[0]
        if top == __package__:
            return None if dotted in NOT_FOLLOWED else find_below(library, dotted)
        return find_below(root, dotted) if siblings is None or top in siblings else None

    sources = Sources(find)
    sources.reach(file, module if file.stem == "__init__" else module.rpartition(".")[0], name)
    return hash_of(sources.reached)


@functools.lru_cache(maxsize=64)
def _distribution_of(top: str) -> frozenset[str]:
    """Return the top-level names that an installed distribution has beside the one given."""
    by_name = importlib.metadata.packages_distributions()
    mine = {*by_name.get(top, ())}
    others = {name for name, distributions in by_name.items() if mine & {*distributions}}
    return frozenset({top, *others})


def code_hash(
    roots: Iterable[tuple[str, str]], folders: Mapping[str, Path], not_followed: Container[str]
) -> str:
    """Return a hash of definitions, by module and name, and all that they reach.

    ``folders`` are those that packages lie in, by the packages' names.
    """

    def find(dotted: str) -> Path | None:
        folder = folders.get(dotted.partition(".")[0])
        return None if folder is None or dotted in not_followed else find_below(folder, dotted)

    sources = Sources(find)
    for module, name in roots:
        path = find(module)
        assert path is not None, module
        sources.reach(path, module.rpartition(".")[0], name)
    return hash_of(sources.reached)

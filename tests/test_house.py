"""The house of docs/architecture.md: arrows point downwards only, and no door leads into a drawer.

Imports are read from the syntax tree, so that a forbidden one is found even where no test runs it;
those for types alone count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.beside

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "snex_node": {"snex_node"},
    "snex_runtime": {"snex_node", "snex_runtime", "snex"},
    "snex": {"snex_node", "snex_runtime", "snex"},
}
PACKAGES = frozenset(MAY_IMPORT)

FLOORS = [
    {"wire"},
    {"errors"},
    {"ties"},
    {"system", "cookie"},
    {"epmd"},
    {"cluster"},
    {"processes"},
    {"client", "services"},
    {"node"},
    {"__init__"},
]
"""Modules and packages of snex_node from the ground up: each may use its own floor and those below.
"""

IO_MODULES = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "os", "random", "secrets", "select", "selectors"}
    | {"signal", "socket", "ssl", "subprocess", "threading", "time", "uvloop", "_thread"}
)
OPTIONAL = frozenset({"uvloop"})


class Import(NamedTuple):
    """One imported module and where it stands."""

    module: str
    line: int
    in_function: bool
    typing_only: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def module_names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        # One dot is the package that the module lies in, each further one its parent.
        parents = package.split(".")
        parents = parents[: len(parents) - (node.level - 1)]
        base = ".".join([*parents, *filter(None, [node.module])])
    if base in PACKAGES:  # `from snex_node import etf` imports snex_node.wire.etf
        return [f"{base}.{alias.name}" for alias in node.names]
    return [
        f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base
        for alias in node.names
    ]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_in(source: str, package: str) -> Iterator[Import]:
    """Yield the imports of a module that lies directly in `package`."""

    def walk(node: ast.AST, in_function: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in module_names(node, package):
                yield Import(name, node.lineno, in_function, typing_only)
        inside = in_function or isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        )
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from walk(statement, inside, True)
            for statement in node.orelse:
                yield from walk(statement, inside, typing_only)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, typing_only)

    yield from walk(ast.parse(source), False, False)


def imports_of(path: Path) -> list[Import]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return list(imports_in(path.read_text(encoding="utf-8"), package))


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def is_sans_io(path: Path) -> bool:
    """Whether it takes bytes and gives events: that is what `wire` is for."""
    return path.parent.name == "wire"


def source_of(module: str) -> Path:
    """The file of `snex_node.wire.etf`, and of `snex_node.wire.etf.Decoder` too."""
    path = ROOT.joinpath(*module.split("."))
    while not path.with_suffix(".py").exists():
        if (path / "__init__.py").exists():
            return path / "__init__.py"
        path = path.parent
    return path.with_suffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_module = pytest.mark.parametrize("path", modules(), ids=name_of)


def complain(path: Path, wrong: list[Import], why: str) -> None:
    lines = [f"{name_of(path)}:{found.line} imports {found.module}" for found in wrong]
    assert not wrong, f"{why}:\n" + "\n".join(lines)


@each_module
def test_arrows_point_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    wrong = [
        found
        for found in imports_of(path)
        if found.top in PACKAGES and found.top not in MAY_IMPORT[package]
    ]
    complain(path, wrong, f"{package} may use only {sorted(MAY_IMPORT[package])}")


def floor_of(path: Path) -> int:
    """On which of the `FLOORS` a module of snex_node is."""
    room = path.relative_to(ROOT / "snex_node").parts[0].removesuffix(".py")
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", [p for p in modules() if "snex_node" in p.parts], ids=name_of)
def test_each_floor_stands_on_those_below(path: Path) -> None:
    wrong = [
        found
        for found in imports_of(path)
        if found.top == "snex_node" and floor_of(source_of(found.module)) > floor_of(path)
    ]
    complain(path, wrong, "what is below knows nothing of what is above")


def test_there_is_no_circle() -> None:
    uses = {
        path: {source_of(found.module) for found in imports_of(path) if found.top in PACKAGES}
        for path in modules()
    }
    assert not [f"{name_of(path)} imports itself" for path in uses if path in uses[path]]
    assert circle_in(uses) is None


def circle_in(uses: dict[Path, set[Path]]) -> str | None:
    """One circle, as text; None when there is none."""
    done: set[Path] = set()

    def visit(path: Path, way: list[Path]) -> str | None:
        if path in way:
            return " -> ".join(map(name_of, [*way[way.index(path) :], path]))
        if path in done:
            return None
        found = next(filter(None, (visit(used, [*way, path]) for used in uses[path])), None)
        done.add(path)
        return found

    return next(filter(None, (visit(path, []) for path in uses)), None)


def drawers_opened(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each underscore attribute of another object that this file does not have.

    A file may look into its own objects, as long as the name is one that it gives.
    """
    tree = ast.parse(source)
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            own.add(node.value)  # of ``__slots__``
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        what = ast.unparse(node)
        # What the standard library keeps to itself is ruff's affair (SLF001), and has a reason.
        ours = what.partition(".")[0] not in sys.stdlib_module_names
        if ours and not node.attr.endswith("__") and node.attr not in own:
            yield node.lineno, what


@each_module
def test_nobody_opens_the_drawers_of_others(path: Path) -> None:
    opened = [
        f"{name_of(path)}:{line} {what}"
        for line, what in drawers_opened(path.read_text(encoding="utf-8"))
    ]
    assert not opened, "underscore attributes are their object's own:\n" + "\n".join(opened)


@each_module
def test_standard_library_only(path: Path) -> None:
    allowed = sys.stdlib_module_names | PACKAGES | OPTIONAL | {"__future__"}
    wrong = [
        found for found in imports_of(path) if found.top not in allowed and not found.typing_only
    ]
    complain(path, wrong, "run time needs nothing but the standard library")


@each_module
def test_no_import_of_our_own_modules_inside_functions(path: Path) -> None:
    wrong = [found for found in imports_of(path) if found.in_function and found.top in PACKAGES]
    complain(path, wrong, "an import inside a function hides a cycle")


@pytest.mark.parametrize("path", [path for path in modules() if is_sans_io(path)], ids=name_of)
def test_protocol_modules_do_no_io(path: Path) -> None:
    wrong = [found for found in imports_of(path) if found.top in IO_MODULES]
    complain(path, wrong, "protocol modules take bytes and give events")


def test_protocol_modules_use_only_protocol_modules() -> None:
    # A protocol module that imports `node` would do input and output through it.
    for path in filter(is_sans_io, modules()):
        wrong = [
            found
            for found in imports_of(path)
            if found.top == "snex_node" and not is_sans_io(source_of(found.module))
        ]
        complain(path, wrong, "protocol modules use protocol modules only")


MOST_LINES = 50
HOT_LOOPS = {"Decoder.decode", "Encoder.encode_parts"}
"""A call for each element would cost more than all else that is done for it."""


def functions_in(source: str) -> Iterator[tuple[str, int]]:
    """Name and length in lines of each function, with the class it is in."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{inside}.{child.name}".lstrip(".")
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    yield name, child.end_lineno - child.lineno + 1
            yield from walk(child, name)

    yield from walk(ast.parse(source), "")


@each_module
def test_a_function_fits_on_a_screen(path: Path) -> None:
    long = [
        f"{name_of(path)}: {name} has {lines} lines"
        for name, lines in functions_in(path.read_text(encoding="utf-8"))
        if lines > MOST_LINES and name not in HOT_LOOPS
    ]
    assert not long, "\n".join(long)


def test_every_package_is_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()


class TestTheChecksThemselves:
    """What would be found, shown on sources that break the rules."""

    def test_imports_are_found_wherever_they_stand(self) -> None:
        source = (
            "import os.path\n"
            "from . import terms\n"
            "from .wire.etf import encode\n"
            "if TYPE_CHECKING:\n    import numpy\n"
            "class A:\n    def f(self):\n        import snex_runtime.server\n"
        )
        assert list(imports_in(source, "snex_node")) == [
            Import("os.path", 1, False, False),
            Import("snex_node.terms", 2, False, False),
            Import("snex_node.wire.etf", 3, False, False),
            Import("numpy", 5, False, True),
            Import("snex_runtime.server", 8, True, False),
        ]

    def test_functions_are_measured(self) -> None:
        source = (
            "class A:\n    def f(self):\n        def g():\n            pass\n        return g\n"
        )
        assert list(functions_in(source)) == [("A.f", 4), ("A.f.g", 2)]

    def test_a_circle_is_found(self) -> None:
        a, b, c = (ROOT / "snex_node" / f"{name}.py" for name in "abc")
        assert circle_in({a: {b}, b: {c}, c: set()}) is None
        found = "snex_node/b.py -> snex_node/c.py -> snex_node/b.py"
        assert circle_in({a: {b}, b: {c}, c: {b}}) == found

    def test_an_opened_drawer_is_found(self) -> None:
        source = (
            "class A:\n"
            "    def f(self, other):\n"
            "        self._mine = other._mine\n"
            "        other._theirs()\n"
            "        os._exit(other.__class__)\n"
        )
        assert list(drawers_opened(source)) == [(4, "other._theirs")]

    def test_relative_imports_of_parents(self) -> None:
        assert [found.module for found in imports_in("from ..a import b", "snex_node.sub")] == [
            "snex_node.a"
        ]

    def test_a_complaint_names_file_line_and_module(self) -> None:
        with pytest.raises(AssertionError, match=r"snex_node/x.py:3 imports asyncio"):
            complain(ROOT / "snex_node/x.py", [Import("asyncio", 3, False, False)], "no")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("wire/etf.py", True), ("wire/etf_decode.py", True), ("node.py", False)],
    )
    def test_which_modules_are_protocol_modules(self, name: str, expected: bool) -> None:
        assert is_sans_io(ROOT / "snex_node" / name) is expected

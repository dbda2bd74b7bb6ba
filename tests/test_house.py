"""The house of docs/architecture.md: arrows point downwards only.

Imports are read from the syntax tree, so that a forbidden one is found even where no test runs it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "snex_node": {"snex_node"},
    "snex_runtime": {"snex_node", "snex_runtime", "snex"},
    "snex": {"snex_node", "snex_runtime", "snex"},
}
PACKAGES = frozenset(MAY_IMPORT)

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
    return [base]


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

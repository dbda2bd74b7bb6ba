"""Snippets of Python: parsed, transformed, compiled, cached, and run in an environment.

Source: "Snex.pyeval" and "Environments" in the README of Snex. A snippet is module code whose
globals and locals are one dict, the environment. On top of that it may ``return`` anywhere outside
of functions, and ``await`` at the top level.

How: the snippet becomes the body of a function in which every name that it binds is declared
global. The function's code object, with the two flags cleared that give functions locals of their
own, is then run by ``eval`` like the code of a module, and ``return`` is the compiler's own: no
handler of the snippet can catch it. Only snippets that await at the top level are coroutines.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import threading
from collections.abc import Iterator
from types import CodeType
from typing import Final

MAX_SNIPPETS: Final = 1024
"""Compiled snippets that are kept; the oldest goes first."""

MAX_KEPT_SOURCE: Final = 256 * 1024
"""Characters of source above which a snippet is compiled each time: with `MAX_SNIPPETS` it bounds
what callers can make the cache hold to 256 MiB."""

VIRTUAL_FILE: Final = "<Snex.Code>"

Environment = dict[str, object]

_CO_OPTIMIZED_NEWLOCALS: Final = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
_CO_YIELDS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Code:
    """A compiled snippet."""

    __slots__ = ("_code", "is_async")

    def __init__(self, code: CodeType) -> None:
        self._code = code
        self.is_async = bool(code.co_flags & inspect.CO_COROUTINE)
        """Whether `run` returns a coroutine: the snippet awaits at its top level."""

    def run(self, environment: Environment) -> object:
        """Run in ``environment``; returns what the snippet returns, or the coroutine to await.

        Raises whatever the snippet raises.
        """
        return eval(self._code, environment)  # noqa: S307 - running given code is what this is for


_cache: dict[tuple[str, str, int], Code] = {}
_lock = threading.Lock()


def compile_code(source: str, file: str = VIRTUAL_FILE, line: int = 0) -> Code:
    """Compile a snippet; the same one again costs a look-up.

    ``file`` is what tracebacks call it, ``line`` the number of lines before its first. Raises
    ``SyntaxError`` with both, also for source that is nested too deeply or holds null bytes.

    >>> compile_code("return 6 * x").run({"x": 7})
    42
    """
    key = (source, file, line)
    code = _cache.get(key)
    if code is None:
        code = Code(_compile(source, file, line))
        if len(source) <= MAX_KEPT_SOURCE:
            with _lock:
                if len(_cache) >= MAX_SNIPPETS:
                    del _cache[next(iter(_cache))]
                _cache[key] = code
    return code


def _compile(source: str, file: str, line: int) -> CodeType:
    try:
        return _transform(_parse(source, file, line), file)
    except (RecursionError, MemoryError):
        raise SyntaxError("the code is nested too deeply", (file, line + 1, 1, None)) from None
    except (ValueError, OverflowError) as error:  # null bytes, lone surrogates, huge numbers
        raise SyntaxError(str(error), (file, line + 1, 1, None)) from None


def _parse(source: str, file: str, line: int) -> ast.Module:
    try:
        module = ast.parse(source, file)
    except SyntaxError as error:
        error.filename = file
        error.lineno = (error.lineno or 1) + line
        if error.end_lineno is not None:
            error.end_lineno += line
        raise
    if line:
        ast.increment_lineno(module, line)
    return module


def _transform(module: ast.Module, file: str) -> CodeType:
    flags, body = _take_future_imports(module.body)
    body = [_TopLevel().visit(statement) for statement in body]
    code = _compile_body(body, file, flags)
    if code.co_flags & _CO_YIELDS:
        raise _yield_outside_function(body, file)
    bound = sorted({*code.co_varnames, *code.co_cellvars})
    if bound:
        code = _compile_body([ast.Global(names=bound), *body], file, flags)
    return code.replace(co_flags=code.co_flags & ~_CO_OPTIMIZED_NEWLOCALS)


def _compile_body(body: list[ast.stmt], file: str, flags: int) -> CodeType:
    """The code of a function with this body: a plain one if it can be, else a coroutine."""
    try:
        return _compile_function(ast.FunctionDef, body, file, flags)
    except SyntaxError:
        # Either it awaits at the top level, or it is wrong as a coroutine as well.
        return _compile_function(ast.AsyncFunctionDef, body, file, flags)


def _compile_function(
    kind: type[ast.FunctionDef] | type[ast.AsyncFunctionDef],
    body: list[ast.stmt],
    file: str,
    flags: int,
) -> CodeType:
    function = kind(
        name="<module>",
        args=ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[]),
        body=body or [ast.Pass()],
        decorator_list=[],
        returns=None,
    )
    function.type_params = []  # type: ignore[union-attr, unused-ignore] # from 3.12 on
    wrapper = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    outer = compile(wrapper, file, "exec", flags=flags, dont_inherit=True)
    return next(constant for constant in outer.co_consts if isinstance(constant, CodeType))


def _take_future_imports(body: list[ast.stmt]) -> tuple[int, list[ast.stmt]]:
    """Compiler flags for ``from __future__ import ...``, which a function cannot hold."""
    flags = 0
    rest = list(body)
    start = 1 if rest and _is_docstring(rest[0]) else 0
    while len(rest) > start:
        statement = rest[start]
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            break
        for alias in statement.names:
            feature = getattr(__future__, alias.name, None)
            if feature is None:
                return flags, rest  # the compiler says what is wrong with it
            flags |= feature.compiler_flag
        del rest[start]
    return flags, rest


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


class _TopLevel(ast.NodeTransformer):
    """Rewrites what module code may do at its top level and a function may not."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """``x: int = 5`` cannot be global; its annotation is not evaluated, as from 3.14 on."""
        if not isinstance(node.target, ast.Name):
            return node
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        assign = ast.Assign(targets=[node.target], value=node.value, type_comment=None)
        return ast.copy_location(assign, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        """``from m import *`` is for modules only: it is run as one, in the same dict."""
        if node.names[0].name != "*":
            return node
        source = f"from {'.' * node.level}{node.module or ''} import *"
        call = ast.parse(f"exec({source!r}, globals())").body[0]
        for inner in ast.walk(call):
            ast.copy_location(inner, node)
        return call


def _yield_outside_function(body: list[ast.stmt], file: str) -> SyntaxError:
    for node in _outside_functions(body):
        if isinstance(node, ast.Yield | ast.YieldFrom):
            where = (file, node.lineno, node.col_offset + 1, None)
            return SyntaxError("'yield' outside function", where)
    return SyntaxError("'yield' outside function", (file, 1, 1, None))


def _outside_functions(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(nodes)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))

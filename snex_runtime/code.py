"""Parse, transform, compile, cache and run a snippet of Python.

A snippet runs as the code of a module would, in a plain ``dict`` that is its globals and its
locals, with two things added: ``return`` anywhere outside functions, and ``await``, ``async for``,
``async with`` and asynchronous comprehensions at the top level; and, for streams, ``yield``.

How: the snippet becomes the body of a function, so that ``return`` has its full meaning:
``finally`` blocks run, and no ``except`` sees it. All names which that function binds are declared
``global`` in it, and its code object is then relieved of the two flags that give a function locals
of its own. What remains is run by ``eval`` in a dict, like a module's code. Statements that a
function does not allow, or that mean something else there, are rewritten: ``from m import *``,
annotated names, the docstring. Only code that awaits at its top level is a coroutine.

Source: "Snex.pyeval", "Environments" and "Accurate code locations" in the README of Snex.

>>> env = {}
>>> compile_code("x = 6").run(env)
>>> compile_code("return 7 * x").run(env)
42
"""

from __future__ import annotations

import ast
import dis
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import CodeType
from typing import Any, Final, final

from snex_node.wire.describe import short
from snex_runtime import sources
from snex_runtime.sources import VIRTUAL_FILE

__all__ = [
    "MAX_KEPT_SOURCE",
    "MAX_LINE",
    "MAX_SNIPPETS",
    "VIRTUAL_FILE",
    "Code",
    "compile_code",
]

MAX_SNIPPETS: Final = 1024
"""Compiled snippets that are kept; the least recently used one goes first."""

MAX_KEPT_SOURCE: Final = 256 * 1024
"""Longest source that is kept, in characters; a longer one is compiled each time. With
`MAX_SNIPPETS` it bounds the source that callers can make us hold to 256 Mi characters."""

MAX_LINE: Final = 1_000_000
"""Largest ``line``: each costs a blank line to parse, 15 ms for the largest."""

_MODULE: Final = "<module>"
# The function around a snippet. No source can hold such an identifier, so nothing of the user's is
# meant when it is cut off the qualified names of what is defined inside.
_WRAPPER: Final = "<snippet>"
_WRAPPER_PREFIX: Final = f"{_WRAPPER}.<locals>."

_TOO_COMPLEX: Final = (
    "too complex for Python's compiler: nested too deeply, or too long an expression; "
    "split it into several statements"
)

# What outlives the snippet, so that somebody may ask for its source.
_DEFINITION: Final = re.compile(r"\b(?:def|class|lambda)\b")

# From 3.14 on a module's annotations are evaluated when somebody asks for them (PEP 649).
_LAZY_ANNOTATIONS: Final = sys.version_info >= (3, 14)

# CPython 3.12 inlines comprehensions, and `locals` copies what variables a frame has into its dict.
_LOCALS_ARE_COPIED: Final = sys.version_info[:2] == (3, 12)

# CPython 3.10 overflows the C stack on an expression of some 100,000 levels, two characters each
# at least, when it is parsed into a tree; when it is compiled the depth is checked first.
_DEPTH_UNCHECKED: Final = sys.version_info < (3, 11)
_SURELY_SHALLOW: Final = 20_000


@final
class Code:
    """A compiled snippet, made by `compile_code`. It can run in any number of environments."""

    __slots__ = ("code", "is_async")

    code: CodeType
    """What Python compiled it to."""

    is_async: bool
    """Whether the snippet awaits at its top level, so that `run` gives a coroutine."""

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.is_async = bool(code.co_flags & inspect.CO_COROUTINE)

    def run(self, environment: dict[str, object]) -> object:
        """Run in ``environment``, which must be a ``dict`` itself and is changed by the snippet.

        Gives the value of ``return``, None without one; when `is_async`, a coroutine of it, which
        the caller must await or close. Raises whatever the snippet raises. ``__name__`` is the
        environment's; without one it is that of `builtins`.

        >>> compile_code("for x in [1, 2, 3]:\\n  if x > 1: return x").run({})
        2
        """
        return eval(self.code, environment)  # noqa: S307 - running given code is what this is for

    def __repr__(self) -> str:
        kind = "async " if self.is_async else ""
        return f"<{kind}Code {self.code.co_filename}:{self.code.co_firstlineno}>"


def compile_code(
    source: str, file: str = VIRTUAL_FILE, line: int = 0, *, yields: bool = False
) -> Code:
    """Compile a snippet, or find it among the `MAX_SNIPPETS` used last.

    With ``yields`` it may yield at its top level: `Code.run` then gives a generator, or, where it
    awaits as well, an asynchronous one.

    ``file`` is where tracebacks say that it is, ``line`` the line of that file where it begins; 0,
    for code that does not know, counts as 1. A byte order mark in front is passed over, as in a
    file. Safe to call from any thread.

    Raises ``SyntaxError``, with file and line, for whatever the compiler refuses, and for null
    bytes, lone surrogates, source that is nested too deeply, and a ``line`` that is negative or
    above `MAX_LINE`.

    >>> compile_code("import asyncio\\nawait asyncio.sleep(0)").is_async
    True
    """
    if len(source) > MAX_KEPT_SOURCE:
        return _compile(source, file, line, yields)
    return _compile_cached(source, file, line, yields)


def _compile(source: str, file: str, line: int, yields: bool = False) -> Code:
    if not 0 <= line <= MAX_LINE:
        reason = (
            f"code cannot start at line {short(line)} of its file: it must be 0 to {MAX_LINE:,}"
        )
        raise _syntax_error(reason, file, 1)
    source = source.removeprefix("\ufeff")
    first = line or 1
    _check_characters(source, file, first)
    # The compiler too reads lines of the file, for its errors and warnings.
    openable = sources.VirtualFile(file) if file == VIRTUAL_FILE else sources.openable(file)
    # Blank lines in front place everything, syntax errors too, and cost less than walking the tree.
    try:
        return Code(_compile_snippet("\n" * (first - 1) + source, openable, first, yields))
    except SyntaxError as error:
        if error.filename == openable:
            error.filename = file
        raise
    except (RecursionError, MemoryError):
        raise _syntax_error(_TOO_COMPLEX, file, first) from None


_compile_cached = lru_cache(maxsize=MAX_SNIPPETS)(_compile)


def _check_characters(source: str, file: str, first_line: int) -> None:
    place = source.find("\0")
    reason = "source code cannot contain null bytes"
    if place < 0:
        try:
            source.encode()
            return
        except UnicodeEncodeError as error:
            place = error.start
            reason = f"source code cannot contain the lone surrogate {source[place]!a}"
    raise _syntax_error(reason, file, first_line + source.count("\n", 0, place))


def _syntax_error(reason: str, file: str, line: int, column: int | None = None) -> SyntaxError:
    return SyntaxError(reason, (file, line, column, None))


def _parse(text: str, file: str) -> ast.Module:
    # Without dont_inherit the __future__ imports of this module would be the snippet's.
    tree = compile(text, file, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def _compile_snippet(text: str, file: str, first_line: int, yields: bool) -> CodeType:
    if _DEPTH_UNCHECKED and len(text) > _SURELY_SHALLOW:  # covered until 3.10
        _check_depth(text, file)
    tree = _parse(text, file)
    if isinstance(file, sources.VirtualFile) and _DEFINITION.search(text):
        sources.keep(file, text, _classes_in(tree))
    futures = _future_imports(tree.body)
    imports = _Imports(tree, file)
    rewriter = _Rewriter(annotations_are_text=_imports_annotations(futures))
    rewriter.rewrite(tree)
    scope = _Scope(tree, file, yields=yields)
    # The imports take effect in front of the wrapper; in it they bind their names.
    tree.body = [*futures, _wrapper(tree.body, scope, first_line)]
    module = compile(tree, file, "exec", dont_inherit=True)
    [code] = (const for const in module.co_consts if isinstance(const, CodeType))
    return _as_module_code(imports.as_in_a_module(code), rewriter.stars)


def _classes_in(tree: ast.Module) -> list[tuple[str, int]]:
    """The names of the classes that are defined anywhere in it, and their first lines."""
    return [
        (node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)]))
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def _check_depth(text: str, file: str) -> None:  # covered until 3.10
    try:
        compile(text, file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError:
        pass  # `return` at the top level is one here; the real ones are found again


def _wrapper(body: list[ast.stmt], scope: _Scope, first_line: int) -> ast.stmt:
    function = _fill("async def _(): pass" if scope.is_async else "def _(): pass")
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    function.name = _WRAPPER
    function.body = body or function.body
    if scope.bound:
        function.body = [ast.Global(names=sorted(scope.bound)), *function.body]
    function.lineno = function.end_lineno = first_line
    return ast.fix_missing_locations(function)


def _as_module_code(code: CodeType, stars: dict[str, CodeType]) -> CodeType:
    """The code of the wrapper, as `eval` runs it in a dict that is both globals and locals.

    Without these flags a frame takes the locals that it is given. The variables of comprehensions,
    which 3.12 and later inline, are then kept apart from them, as in a module.
    """
    code = code.replace(
        co_flags=code.co_flags & ~(inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS),
        co_name=_MODULE,
        co_consts=tuple(_star_of(const, stars) or _unwrapped(const) for const in code.co_consts),
    )
    if sys.version_info >= (3, 11):
        code = code.replace(co_qualname=_MODULE)
    return _without_dead_variables(code) if _LOCALS_ARE_COPIED and code.co_varnames else code


def _without_dead_variables(code: CodeType) -> CodeType:  # covered in 3.12
    """Rename the variables of comprehensions of which no code is left: ``if 0: [i for i in x]``.

    ``replace`` knows the variables of inlined comprehensions by the instruction that hides them.
    These have none, so that `locals` and `exec` would take global variables of their names away.
    """
    live = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_FAST_AND_CLEAR"}
    names = {name: name if name in live else f"<{name}>" for name in code.co_varnames}
    return code.replace(
        co_varnames=tuple(names.values()),
        co_cellvars=tuple(names.get(name, name) for name in code.co_cellvars),
    )


def _unwrapped(const: object) -> object:
    """``const`` with the qualified names that a module's definitions have.

    Only lambdas, comprehensions and the scopes of type parameters need it: where a global name is
    defined the compiler leaves the wrapper out. In 3.10 that name is a constant beside the code.
    """
    if isinstance(const, str):
        return const.removeprefix(_WRAPPER_PREFIX)
    if not isinstance(const, CodeType):
        return const
    consts = tuple(map(_unwrapped, const.co_consts))
    if any(new is not old for new, old in zip(consts, const.co_consts, strict=True)):
        const = const.replace(co_consts=consts)
    if sys.version_info >= (3, 11) and const.co_qualname.startswith(_WRAPPER_PREFIX):
        const = const.replace(co_qualname=const.co_qualname.removeprefix(_WRAPPER_PREFIX))
    return const


# --- Statements that a function does not allow, or that mean something else there -----------------


class _Holes(ast.NodeTransformer):
    def __init__(self, holes: dict[str, ast.expr]) -> None:
        self._holes = holes

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._holes.get(node.id, node)


def _fill(template: str, at: ast.AST | None = None, **holes: ast.expr) -> ast.stmt:
    """The statement in ``template``, placed ``at``; what the holes hold replaces their names."""
    [statement] = _parse(template, _WRAPPER).body
    if at is not None:
        for node in ast.walk(statement):
            ast.copy_location(node, at)
    filled = _Holes(holes).visit(statement)
    assert isinstance(filled, ast.stmt)
    return filled


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _future_imports(body: list[ast.stmt]) -> list[ast.ImportFrom]:
    """Those that count: with nothing but a docstring before them."""
    futures = []
    for statement in body[1:] if body and _is_docstring(body[0]) else body:
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            break
        futures.append(statement)
    return futures


def _imports_annotations(futures: Iterable[ast.ImportFrom]) -> bool:
    return any(alias.name == "annotations" for future in futures for alias in future.names)


def _blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """The lists of statements in the scope of the module, each before those nested in it."""
    blocks = [tree.body]
    while blocks:
        block = blocks.pop()
        yield block
        for statement in block:
            blocks.extend(_nested_blocks(statement))


def _nested_blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The lists of statements in ``statement`` that are in its own scope."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    handlers, cases = getattr(statement, "handlers", ()), getattr(statement, "cases", ())
    for part in (statement, *handlers, *cases):
        for field in ("body", "orelse", "finalbody"):
            if nested := getattr(part, field, None):
                yield nested


def _import_kinds() -> tuple[int, int, int]:  # covered from 3.15 on
    """How the compiler marks an import: as lazy, as any in a module, and as one in a function.

    From Python 3.15 on (PEP 810) the last is always eager, and the one before it eager unless the
    interpreter or the module is told otherwise. Where all are alike there is nothing to do.
    """
    if "is_lazy" not in ast.Import._fields:
        return 0, 0, 0
    snippets = ("lazy import a", "import a", "def f(): import a")
    codes = [compile(each, _WRAPPER, "exec", dont_inherit=True) for each in snippets]
    [codes[2]] = [const for const in codes[2].co_consts if isinstance(const, CodeType)]
    lazy, usual, eager = (
        next(code.co_code[at + 1] for at in _imports_in(code.co_code)) for code in codes
    )
    return lazy, usual, eager


def _imports_in(bytecode: bytes) -> list[int]:  # covered from 3.15 on
    """Where the instructions are that import; each instruction takes two bytes."""
    return [at for at in range(0, len(bytecode), 2) if bytecode[at] == _IMPORT_NAME]


_TRY: Final = (ast.Try, getattr(ast, "TryStar", ast.Try))  # `except*` is new in 3.11
_IMPORT_NAME: Final = dis.opmap["IMPORT_NAME"]
_LAZY, _USUAL, _EAGER = _import_kinds()


class _Imports:
    """Imports that are marked in a module as in no function: lazy ones, or ones that may be.

    Raises ``SyntaxError`` for lazy ones where a module does not allow them.
    """

    def __init__(self, tree: ast.Module, file: str) -> None:
        self._file = file
        self._marks: dict[tuple[int, int], int] = {}
        blocks = [(tree.body, False)] if _LAZY != _EAGER else []
        while blocks:  # covered from 3.15 on
            block, tried = blocks.pop()
            for statement in block:
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    self._found(statement, tried=tried)
                inside = tried or isinstance(statement, _TRY)
                blocks.extend((nested, inside) for nested in _nested_blocks(statement))

    def _found(
        self, statement: ast.Import | ast.ImportFrom, *, tried: bool
    ) -> None:  # covered from 3.15 on
        lazy = bool(getattr(statement, "is_lazy", 0))
        if lazy:
            self._check(statement, tried=tried)
        if not tried:
            # Only then the compiler takes it in a function; the mark says later what it was.
            setattr(statement, "is_lazy", 0)  # noqa: B010 - unknown before 3.15
            self._marks[statement.lineno, statement.col_offset] = _LAZY if lazy else _USUAL

    def _check(
        self, statement: ast.Import | ast.ImportFrom, *, tried: bool
    ) -> None:  # covered from 3.15 on
        kind = "import" if isinstance(statement, ast.Import) else "from ... import"
        if tried:
            reason = f"lazy {kind} not allowed inside try/except blocks"
        elif statement.names[0].name == "*":
            reason = f"lazy {kind} * is not allowed"
        else:
            return
        raise _syntax_error(reason, self._file, statement.lineno, statement.col_offset + 1)

    def as_in_a_module(self, code: CodeType) -> CodeType:  # covered from 3.15 on
        """``code``, of the function around the snippet, with these marks."""
        if not self._marks:
            return code
        bytecode = bytearray(code.co_code)
        places: list[Any] = list(getattr(code, "co_positions")())  # noqa: B009 - not in 3.10
        for at in _imports_in(code.co_code):
            line, _, column, _ = places[at // 2]
            mark = self._marks.get((line or 0, column or 0))
            if mark is not None:
                bytecode[at + 1] ^= _EAGER ^ mark
        return code.replace(co_code=bytes(bytecode))


_SETUP_ANNOTATIONS: Final = "try: __annotations__\nexcept NameError: __annotations__ = {}"


class _Rewriter:
    """Gives statements the meaning in a function that they have in a module."""

    def __init__(self, *, annotations_are_text: bool) -> None:
        self.stars: dict[str, CodeType] = {}
        self._text = annotations_are_text
        self._lazy = _LAZY_ANNOTATIONS and not annotations_are_text
        self._first: ast.AnnAssign | None = None
        self._annotated: list[ast.AnnAssign] = []

    def rewrite(self, tree: ast.Module) -> None:
        for block in _blocks(tree):
            block[:] = [new for statement in block for new in self._statement(statement)]
        if tree.body and _is_docstring(tree.body[0]):
            tree.body[0] = _docstring(tree.body[0])
        if self._lazy and self._annotated:  # covered from 3.14 on
            tree.body[:0] = self._lazy_annotations()
        elif not self._lazy and self._first is not None:
            tree.body.insert(0, _fill(_SETUP_ANNOTATIONS, at=self._first))

    def _statement(self, statement: ast.stmt) -> Iterable[ast.stmt]:
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            return (self._star_import(statement),)
        if isinstance(statement, ast.AnnAssign):
            return self._annotated_assignment(statement)
        return (statement,)

    def _star_import(self, statement: ast.ImportFrom) -> ast.stmt:
        """A call of a function whose code will be replaced by that of the import.

        A function whose code is not `CO_OPTIMIZED` has its globals for locals: there the names go.
        """
        marker = f"<star {len(self.stars)}>"
        # The file is that of the runtime, so that this frame is left out of tracebacks.
        module = ast.Module(body=[statement], type_ignores=[])
        self.stars[marker] = compile(module, __file__, "exec", dont_inherit=True)
        return _fill("(lambda: hole)()", at=statement, hole=ast.Name(id=marker, ctx=ast.Load()))

    def _annotated_assignment(self, statement: ast.AnnAssign) -> Iterable[ast.stmt]:
        self._first = self._first or statement
        # As ``(x): int = 5`` it may be global and is checked, and does not evaluate the annotation.
        simple, statement.simple = statement.simple, 0
        yield statement
        if not simple or not isinstance(statement.target, ast.Name):
            if not self._text and not self._lazy:
                yield ast.copy_location(ast.Expr(value=statement.annotation), statement)
            return
        index = len(self._annotated)
        self._annotated.append(statement)
        if self._lazy:  # covered from 3.14 on
            template = "__conditional_annotations__.add(index)"
            yield _fill(template, at=statement, index=ast.Constant(value=index))
        else:
            yield _fill(
                "__annotations__[name] = annotation",
                at=statement,
                name=ast.Constant(value=statement.target.id),
                annotation=self._annotation(statement.annotation),
            )

    def _annotation(self, annotation: ast.expr) -> ast.expr:
        return ast.Constant(value=ast.unparse(annotation)) if self._text else annotation

    def _lazy_annotations(self) -> list[ast.stmt]:  # covered from 3.14 on
        """What 3.14 makes of them in a module: each counts once its statement has run."""
        first = self._annotated[0]
        parameter = ast.arg(arg=".format")  # as the compiler names it: no annotation can mean it
        parts = [_lazy_annotation(index, each) for index, each in enumerate(self._annotated)]
        function = _fill(
            "def __annotate__():\n  if format > 2: raise NotImplementedError\n  return parts",
            at=first,
            format=ast.Name(id=parameter.arg, ctx=ast.Load()),
            parts=ast.Dict(keys=[None] * len(parts), values=parts),
        )
        assert isinstance(function, ast.FunctionDef)
        function.args.posonlyargs = [parameter]
        return [function, _fill("__conditional_annotations__ = {*()}", at=first)]


def _lazy_annotation(index: int, statement: ast.AnnAssign) -> ast.expr:  # covered from 3.14 on
    assert isinstance(statement.target, ast.Name)
    part = _fill(
        "{name: annotation} if index in __conditional_annotations__ else {}",
        at=statement,
        index=ast.Constant(value=index),
        name=ast.Constant(value=statement.target.id),
        annotation=statement.annotation,
    )
    assert isinstance(part, ast.Expr)
    return part.value


def _docstring(statement: ast.stmt) -> ast.stmt:
    assert isinstance(statement, ast.Expr)
    return _fill("__doc__ = text", at=statement, text=statement.value)


def _star_of(const: object, stars: dict[str, CodeType]) -> CodeType | None:
    if isinstance(const, CodeType) and len(const.co_names) == 1:
        return stars.get(const.co_names[0])
    return None


# --- What the top level binds, and whether it awaits ----------------------------------------------


class _Scope:
    """The names bound in the scope of the module and whether code in it awaits.

    Raises ``SyntaxError`` for what a function allows and a module does not.

    A name too many in `bound` does no harm, because a name that is not local is global anyway; one
    that is missing would be a local variable. The tree is walked without recursion: a sum of 1,000
    terms is 1,000 levels deep.
    """

    def __init__(self, tree: ast.Module, file: str, *, yields: bool = False) -> None:
        self.bound: set[str] = set()
        self.is_async = False
        self._file = file
        self._yields = yields
        stack: list[ast.AST] = [tree]
        while stack:
            node = stack.pop()
            visit = _VISITORS.get(type(node))
            stack.extend(visit(self, node) if visit else ast.iter_child_nodes(node))

    def name(self, node: ast.Name) -> Iterable[ast.AST]:
        if not isinstance(node.ctx, ast.Load):
            self.bound.add(node.id)
        return ()

    def imported(self, node: ast.Import | ast.ImportFrom) -> Iterable[ast.AST]:
        self.bound.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        return ()

    def handler(self, node: ast.ExceptHandler) -> Iterable[ast.AST]:
        return self._captured(node.name, node)

    def capture(self, node: ast.MatchAs | ast.MatchStar) -> Iterable[ast.AST]:
        return self._captured(node.name, node)

    def mapping(self, node: ast.MatchMapping) -> Iterable[ast.AST]:
        return self._captured(node.rest, node)

    def _captured(self, name: str | None, node: ast.AST) -> Iterable[ast.AST]:
        if name is not None:
            self.bound.add(name)
        return ast.iter_child_nodes(node)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterable[ast.AST]:
        """Its decorators, defaults and annotations are evaluated here, its body is not."""
        self.bound.add(node.name)
        returns = [] if node.returns is None else [node.returns]
        return [*node.decorator_list, *_evaluated_outside(node.args), *returns]

    def function_expression(self, node: ast.Lambda) -> Iterable[ast.AST]:
        return _evaluated_outside(node.args)

    def class_(self, node: ast.ClassDef) -> Iterable[ast.AST]:
        self.bound.add(node.name)
        return [*node.decorator_list, *node.bases, *node.keywords]

    def type_alias(self, node: ast.AST) -> Iterable[ast.AST]:  # covered from 3.12 on
        name = getattr(node, "name")  # noqa: B009 - ast.TypeAlias is unknown before 3.12
        self.bound.add(name.id)
        return ()

    def generator(self, node: ast.GeneratorExp) -> Iterable[ast.AST]:
        """Only its first iterable is evaluated here; the rest may await, but binds names here."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr):
                self.bound.add(inner.target.id)
        return (node.generators[0].iter,)

    def comprehension(self, node: ast.comprehension) -> Iterable[ast.AST]:
        self.is_async |= bool(node.is_async)
        return ast.iter_child_nodes(node)

    def awaits(self, node: ast.AST) -> Iterable[ast.AST]:
        self.is_async = True
        return ast.iter_child_nodes(node)

    def yields(self, node: ast.Yield | ast.YieldFrom) -> Iterable[ast.AST]:
        if self._yields:
            return ast.iter_child_nodes(node)
        raise self._error("'yield' outside function", node)

    def nonlocal_(self, node: ast.Nonlocal) -> Iterable[ast.AST]:
        raise self._error("nonlocal declaration not allowed at module level", node)

    def _error(self, reason: str, node: ast.expr | ast.stmt) -> SyntaxError:
        return _syntax_error(reason, self._file, node.lineno, node.col_offset + 1)


def _evaluated_outside(arguments: ast.arguments) -> list[ast.AST]:
    """The defaults and annotations of a function."""
    parameters = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        *filter(None, (arguments.vararg, arguments.kwarg)),
    ]
    defaults = filter(None, (*arguments.defaults, *arguments.kw_defaults))
    return [*defaults, *(each.annotation for each in parameters if each.annotation)]


_VISITORS: Final[dict[type[ast.AST], Callable[[_Scope, Any], Iterable[ast.AST]]]] = {
    ast.Name: _Scope.name,
    ast.Import: _Scope.imported,
    ast.ImportFrom: _Scope.imported,
    ast.ExceptHandler: _Scope.handler,
    ast.MatchAs: _Scope.capture,
    ast.MatchStar: _Scope.capture,
    ast.MatchMapping: _Scope.mapping,
    ast.FunctionDef: _Scope.function,
    ast.AsyncFunctionDef: _Scope.function,
    ast.Lambda: _Scope.function_expression,
    ast.ClassDef: _Scope.class_,
    ast.GeneratorExp: _Scope.generator,
    ast.comprehension: _Scope.comprehension,
    ast.Await: _Scope.awaits,
    ast.AsyncFor: _Scope.awaits,
    ast.AsyncWith: _Scope.awaits,
    ast.Yield: _Scope.yields,
    ast.YieldFrom: _Scope.yields,
    ast.Nonlocal: _Scope.nonlocal_,
}
if sys.version_info >= (3, 12):  # covered from 3.12 on
    _VISITORS[ast.TypeAlias] = _Scope.type_alias

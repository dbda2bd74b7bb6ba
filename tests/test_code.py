"""Snippets run as module code does, and may return and await besides.

What module code does is not written down here but asked of `exec`, on each version of Python.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import gc
import inspect
import subprocess
import sys
import sysconfig
import threading
import tokenize
import traceback
import types
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snex_runtime import code as code_module
from snex_runtime.code import (
    MAX_KEPT_SOURCE,
    MAX_LINE,
    MAX_SNIPPETS,
    VIRTUAL_FILE,
    Code,
    compile_code,
)
from tests.support.examples import IN_CI

Env = dict[str, object]

CPYTHON = sys.implementation.name == "cpython"


def run(source: str, env: Env | None = None, **at: object) -> object:
    """The value of a snippet that does not await."""
    code = compile_code(source, **at)  # type: ignore[arg-type]
    assert not code.is_async
    return code.run({} if env is None else env)


def started(code: Code, env: Env) -> asyncio.Task[object]:
    """A task of a snippet that awaits."""
    assert code.is_async
    result = code.run(env)
    assert inspect.iscoroutine(result)
    return asyncio.ensure_future(result)


def run_async(source: str, env: Env | None = None) -> object:
    """The value of a snippet that awaits."""

    async def main() -> object:
        return await started(compile_code(source), {} if env is None else env)

    return asyncio.run(main())


def described(value: object) -> object:
    """What two runs of the same source must agree on."""
    if isinstance(value, types.FunctionType):
        return ("function", value.__qualname__, value.__module__, value.__name__)
    if isinstance(value, type):
        body = {
            k: described(v) for k, v in vars(value).items() if k not in ("__dict__", "__weakref__")
        }
        return ("class", value.__qualname__, value.__module__, body)
    if isinstance(value, dict):
        return {k: described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [described(v) for v in value]
    if type(value).__module__ == "typing" or isinstance(value, types.CodeType):
        return repr(type(value))
    return value


def result_of(execute: object, source: str, start: Env) -> tuple[object, object]:
    """The environment after ``source``, and what it raised."""
    env: Env = {"__name__": "somewhere", **start}
    raised = None
    try:
        execute(source, env)  # type: ignore[operator]
    except Exception as error:
        raised = (type(error), str(error))
    env.pop("__builtins__", None)
    # An implementation detail of 3.14, which it also leaves where annotations are texts.
    env.pop("__conditional_annotations__", None)
    return described(env), raised


def exec_as_module(source: str, env: Env) -> None:
    exec(compile(source, VIRTUAL_FILE, "exec", dont_inherit=True), env)


def programs(text: str) -> dict[str, str]:
    """The sections of ``text`` by the titles above them."""
    sections = (section.partition("\n") for section in text.split("### ")[1:])
    return {title: source.rstrip("\n") for title, _, source in sections}


LIKE_A_MODULE = programs(r"""### assignment
x = y = 1; (a, [b, *c]) = (1, [2, 3, 4]); x += y
### attribute and item
class A: pass
A.x = d = {}
d['k'] = [A.x]
del d['k']
### for
for i, (j, k) in [(1, (2, 3))]: pass
else: done = True
### while
n = 3
while n:
  n -= 1
  if n == 1: break
else: never = 1
### with
import contextlib
with contextlib.nullcontext(5) as x, contextlib.nullcontext((1, 2)) as (y, z): pass
### except
try: 1 / 0
except ZeroDivisionError as e: text = str(e)
finally: f = 1
### except unbinds
e = 1
try: 1 / 0
except ZeroDivisionError as e: pass
print(e)
### import
import os
import os.path as p, xml.dom.minidom
from math import pi, e as euler
### star import
from math import *
r = sqrt(16)
### star import in blocks
try:
  if True:
    for _ in [1]:
      from string import *
finally: n = digits
### star import of two
from math import *; from cmath import *
r = str(sqrt(-1))
### star import that fails
from math import *
from no_such_module_anywhere import *
### relative star import
from . import *
### functions
def f(a, b=2, *c, d=4, **e): return a
async def g(): pass
x = f(1)
### functions see later changes
def f(): return x
x = 1
a = f()
x = 2
b = f()
### global in a function
def f():
  global x, y
  x = 5; del y
y = 1
f()
### closures
x = 1
def f():
  y = 2
  def g():
    nonlocal y
    y += x
    return y
  return g()
z = f()
### lambdas
x = 1
f = lambda a=x: lambda: a + x
x = 5
z = f()()
### lambda error
f = lambda a: a
f()
### recursion
def f(n): return n and f(n - 1)
z = f(5)
fib = lambda n: n if n < 2 else fib(n - 1) + fib(n - 2)
w = fib(9)
### decorators
def d(f): return (f, f())
@d
def f(): return 1
@(lambda c: [c])
class A: pass
### classes
x = 1
class A:
  x = x + 1
  y = [x for _ in [0]]
  def f(self): return __class__, x
z = A().f()[1]
### super
class A:
  def f(self): return 1
class B(A):
  def f(self): return super().f() + 1
z = B().f()
### metaclass
class M(type): pass
class A(metaclass=M): z = 1
### nested class
class A:
  class B:
    def f(self): return 1
    g = lambda self: 2
z = A.B.f.__qualname__, A.B.g.__qualname__
### name mangling
__x = 1
class A:
  __y = 2
  def f(self):
    global __z
    __z = 3
    return self.__y
A().f()
q = __x
### mangled global
class A:
  def f(self): return __x
_A__x = 7
z = A().f()
### del
x = y = 1
del x
### del in a loop
for i in range(3): a = i
del i, a
### walrus
if (n := 10) > 5: z = n
### walrus in comprehensions
a = [y := i for i in range(3)]
b = {(z := j): 1 for j in 'ab'}
c = any((w := k) > 1 for k in range(5))
### walrus in nested comprehensions
a = [[(y := i + j) for i in range(2)] for j in range(2)]
b = list(x for x in [(v := q) for q in range(3)])
### walrus in a lambda
f = lambda: (inner := 1)
z = f()
### walrus in defaults
def f(a=(x := 1), *, b=(y := 2)): pass
g = lambda a=(z := 3): a
@(d := lambda f: f)
class A((w := object)): pass
### match
match {'a': [1, 2, 3], 'b': 4, 'c': 5}:
  case {'a': [first, *rest], 'b': int() as b, **others}: pass
### match or
match (1, 'x'):
  case [1 | 2 as n, str(s)]: pass
match 5:
  case whatever: pass
### comprehension hides
i = 5
x = [i for i in range(3)]
y = {i: j for i in range(2) for j in range(i)}
z = {i for i in x if i}
### comprehension of a free name
n = 2
x = [[n * i for i in range(j)] for j in range(3)]
### comprehension with closures
fs = [lambda: i for i in range(3)]
x = [f() for f in fs]
i = 7
y = [f() for f in fs]
### comprehension and locals
i = 7
x = [list(locals()) and exec('q = 1') for i in range(3)]
locals(); dir(); eval('1')
### comprehension that never runs
i = j = 7
if i == 0: k = [(i, j) for i in () for j in ()]
if 0: k = [i for i in range(3)]
while 0: k = [lambda: j for j in range(3)]
for i in range(2): exec('q = i'); locals()

### comprehension and eval
i = 7
x = [eval('i') for i in range(3)]
### comprehension and frames
import sys
x = [sys._getframe().f_locals['i'] for i in range(2)]
del sys
### comprehension error
x = [undefined for i in range(3)]
### generator expression
g = (i * n for i in range(3))
n = 2
x = list(g)
y = g.__qualname__
del g
### comprehension in a class
class A:
  x = 2
  y = [i for i in range(x)]
### exec
exec('x = 1'); y = x
### exec in both
same = locals() is globals()
v = vars() is globals()
locals()['a'] = 1
b = a
### shadowed builtins
exec = globals = locals = None
from math import pi
from string import *
x: int = 1
### annotations
x: int = 5
y: str
(z): float = 1
### annotations read
x: int = 5
z = __annotations__
### annotations of items
a = [0]
a[0]: int = 3
class A: pass
A.x: int = 4
a[0]: str
### annotations in blocks
if True:
  x: int = 1
else:
  y: str = 2
for i in [1]:
  z: 'float'
### annotations and values
log = []
x: log.append('a') = log.append('v')
[0][0]: log.append('b') = log.append('w')
### annotations as text
from __future__ import annotations
x: no.such[thing, 1:2] = 5
def f(a: Undefined) -> 'b': pass
z = f.__annotations__
[1][0]: nothing = 2
y = __annotations__
### annotations in classes
from typing import ClassVar
class A:
  x: int = 1
  y: ClassVar[str]
z = dict(A.__annotations__)
### annotated functions
def f(a: int, *b: str, c: (lambda: 1) = 2, **d: 'x') -> list[int]:
  y: 1 / 0 = 1
  return y
z = f(1)
### annotation of nothing
x: int
### docstring
'text'
x = 1
### docstring before future
'text'
from __future__ import annotations, division as d
### no docstring
f'text'
x = 1
### bytes first
b'text'
### future in parentheses

# c
from __future__ import (
  annotations,
  generator_stop
)
x: a = 1
### no name
x = __name__
class A: pass
y = A.__module__
### global
global x
x = 1
global y
### comments only
# one

  # two
### pass
pass
### continued lines
x = (1 +
  2)
y = 1 + \
 2
### unicode
naïve = 'ü'; ﬁ = 1
class Ä: pass
### one line
x = 1; y = 2; print
### raises
x = 1
raise KeyError('k')
### assert
assert False, 'no'
### undefined
x = undefined_name
### ellipsis
x = ...
""")
LIKE_A_MODULE |= {
    "empty": "",
    "carriage returns": "x = 1\r\nif x:\r\n  y = '''a\r\nb'''\r\n",
    "form feed": "x = 1\n\x0cy = 2\n",
}
if CPYTHON:  # PyPy raises KeyError where `del` does not find a global name
    LIKE_A_MODULE["del twice"] = "x = 1\ndel x\ndel x"
if sys.version_info >= (3, 11):
    LIKE_A_MODULE |= programs(r"""### except star
try: raise ExceptionGroup('g', [ValueError(1), KeyError(2)])
except* ValueError as a: x = len(a.exceptions)
except* KeyError as b: y = len(b.exceptions)
""")
if sys.version_info >= (3, 12):
    LIKE_A_MODULE |= programs(r"""### type alias
type X = list[Y]
type Z[T] = dict[T, X]
Y = int
v = X.__value__ == list[int]
### generic function
def f[T](a: T) -> T: return a
x = f(1), f.__qualname__, f.__type_params__[0].__name__
### generic class
class A[T]:
  z = 1
  def f(self): return lambda: T
x = A().f().__qualname__
### generic default
def f[T](a=(x := 1)): return a
y = f()
### generic bound
def f[T: Later](): pass
Later = int
x = f.__type_params__[0].__bound__
""")
if sys.version_info >= (3, 14):
    LIKE_A_MODULE |= programs(r"""### template
n = 1
x = t'a{n}b'.values
### annotation never evaluated
(z): undefined_1 = 1
[0][0]: undefined_2 = 2
""")


@pytest.mark.parametrize("source", LIKE_A_MODULE.values(), ids=LIKE_A_MODULE.keys())
@pytest.mark.parametrize(
    "start", [{}, {"i": 7, "__annotations__": {"old": 1}}], ids=["new", "used"]
)
def test_module_code_runs_as_in_a_module(source: str, start: Env) -> None:
    def as_snippet(source: str, env: Env) -> None:
        assert run(source, env) is None

    ours = result_of(as_snippet, source, start)
    assert ours == result_of(exec_as_module, source, start)


@pytest.mark.parametrize("source", LIKE_A_MODULE.values(), ids=LIKE_A_MODULE.keys())
def test_module_code_runs_as_in_a_module_when_it_awaits(source: str) -> None:
    def as_snippet(source: str, env: Env) -> None:
        assert run_async(source + "\nif 0: await 0", env) is None

    ours, raised = result_of(as_snippet, source, {})
    assert (ours, raised) == result_of(exec_as_module, source, {})


def standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in (
        "",
        "asyncio",
        "collections",
        "concurrent/futures",
        "email",
        "importlib",
        "json",
        "unittest",
    ):
        # In CI the same few each time.
        yield from sorted((root / name).glob("*.py"))[:: 3 if IN_CI else 1]


@pytest.mark.untraced
def test_the_standard_library_compiles_without_a_local_variable() -> None:
    # A binding that is overlooked becomes a local variable of the wrapper. The variables of
    # comprehensions that are inlined are locals in modules as well.
    compiled = 0
    for path in standard_library():
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile_code(source, str(path)).code
            module = compile(source, str(path), "exec", dont_inherit=True)
        assert code.co_varnames == module.co_varnames, path
        assert code.co_freevars == (), path
        # A module of 3.14 keeps in a cell which of its annotations count.
        assert {*code.co_cellvars} == {*module.co_cellvars} - {"__conditional_annotations__"}, path
        compiled += 1
    assert compiled > (30 if IN_CI else 100)


# --- return ---------------------------------------------------------------------------------------

RETURNS: dict[str, tuple[str, object]] = {
    "value": ("return 6 * 7", 42),
    "nothing": ("x = 1", None),
    "bare": ("return\nx = 1", None),
    "in if": ("if True:\n  return 1\nreturn 2", 1),
    "in loops": ("for i in range(5):\n  while True:\n    if i == 3: return i\n    break", 3),
    "in try": ("try: return 1\nexcept BaseException: return 2", 1),
    "in bare except": (
        "try:\n  try: return 1\n  except: return 2\nexcept BaseException: return 3",
        1,
    ),
    "in except": ("try: 1 / 0\nexcept ZeroDivisionError as e: return str(e)", "division by zero"),
    "in else": ("try: pass\nexcept: pass\nelse: return 1", 1),
    "finally runs": ("x = []\ntry: return x\nfinally: x.append(1)", [1]),
    "value before finally": ("x = 1\ntry: return x\nfinally: x = 2", 1),
    "in with": (
        "import contextlib\nx = []\nwith contextlib.ExitStack() as s:\n"
        "  s.callback(x.append, 1)\n  with contextlib.suppress(BaseException): return x",
        [1],
    ),
    "in match": ("match 1:\n  case n: return n", 1),
    "in function": ("def f():\n  return 1\nreturn f() + 1", 2),
    "tuple": ("return 1, *[2, 3]", (1, 2, 3)),
    "lambda": ("return (lambda a: a + 1)(1)", 2),
    "loop in finally": ("while True:\n  try: return 1\n  finally:\n    for i in [1]: continue", 1),
}  # fmt: skip


@pytest.mark.parametrize(("source", "value"), RETURNS.values(), ids=RETURNS.keys())
def test_return_ends_the_snippet_and_nothing_of_it_sees_that(source: str, value: object) -> None:
    assert run(source) == value
    assert run_async(f"import asyncio\nawait asyncio.sleep(0)\n{source}") == value


def test_a_return_is_cancelled_by_finally_as_in_a_function() -> None:
    source = "for i in range(3):\n  try: return i\n  finally:\n    if i < 2: {}\nreturn 'end'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3.14 warns of this
        assert run(source.format("continue")) == 2
        assert run(source.format("break")) == "end"
        assert run("try: 1 / 0\nfinally: return 5") == 5


# --- await ----------------------------------------------------------------------------------------

AWAITS: dict[str, tuple[str, object]] = {
    "await": ("return await value(1)", 1),
    "in expressions": (
        "return [f'{await value(1)}', (await value(2)) + 1, not await value(0)]",
        ["1", 3, True],
    ),
    "async for": (
        "r = []\nasync for i in count(3): r.append(i)\nelse: r.append('e')\nreturn r",
        [0, 1, 2, "e"],
    ),
    "async with": ("async with manager() as m: return m", "entered"),
    "comprehension": ("return [i async for i in count(3) if i]", [1, 2]),
    "await in comprehension": ("return {i: await value(i) for i in range(2)}", {0: 0, 1: 1}),
    "comprehension awaits its source": ("return {i for i in await value([1, 2])}", {1, 2}),
    "generator awaits its source": ("return list(i for i in await value([1, 2]))", [1, 2]),
    "comprehension over agen": ("return [i async for i in (j async for j in count(3))]", [0, 1, 2]),
    "in default": ("def f(a=await value(1)): return a\nreturn f()", 1),
    "in decorator": ("@(await value(lambda f: 'decorated'))\ndef f(): pass\nreturn f", "decorated"),
    "in base": ("class A(await value(dict)): pass\nreturn A(a=1)", {"a": 1}),
    "in lambda default": ("return (lambda a=await value(1): a)()", 1),
    "in except": ("try: 1 / 0\nexcept ZeroDivisionError: return await value(1)", 1),
    "in finally": ("try: return 1\nfinally: x = await value(2)", 1),
    "in match": ("match await value(3):\n  case n if await value(n): return n", 3),
    "in with": ("import contextlib\nwith contextlib.nullcontext(await value(1)) as x: return x", 1),
    "globals": (
        "x = await value(1)\ndef f(): return x\nreturn f(), locals() is globals()",
        (1, True),
    ),
    "walrus": ("[y := await value(i) for i in range(3)]\nreturn y", 2),
}  # fmt: skip

HELPERS = (
    "import asyncio\n"
    "async def value(x):\n  await asyncio.sleep(0)\n  return x\n"
    "async def count(n):\n  for i in range(n): yield await value(i)\n"
    "class manager:\n"
    "  async def __aenter__(self): return await value('entered')\n"
    "  async def __aexit__(self, *_): await value(None)\n"
)


@pytest.mark.parametrize(("source", "value"), AWAITS.values(), ids=AWAITS.keys())
def test_await_at_the_top_level(source: str, value: object) -> None:
    env: Env = {}
    run(HELPERS, env)
    assert run_async(source, env) == value


@pytest.mark.parametrize(
    "source",
    [
        "async def f(): await x",
        "f = lambda: (i async for i in x)",
        "g = (i async for i in x)",
        "g = (await i for i in x)",
        "async def f():\n  async with a: pass\n  async for b in c: return [d async for e in f]",
        "class A:\n  async def f(self): await x",
    ],
)
def test_only_code_that_awaits_at_its_top_level_is_a_coroutine(source: str) -> None:
    assert not compile_code(source).is_async


def test_concurrent_runs_share_the_environment_and_nothing_else() -> None:
    async def main() -> list[object]:
        code = compile_code(
            "import asyncio\nn += 1\nfor i in range(3): await asyncio.sleep(0)\nreturn n"
        )
        env: Env = {"n": 0}
        runs = [started(code, env) for _ in range(3)]
        return list(await asyncio.gather(*runs))

    assert asyncio.run(main()) == [3, 3, 3]


def test_a_cancelled_run_executes_its_finally_blocks() -> None:
    async def main() -> Env:
        env: Env = {"started": asyncio.Event()}
        source = (
            "import asyncio\ntry:\n  started.set()\n  await asyncio.Event().wait()\n"
            "finally:\n  await asyncio.sleep(0)\n  cleaned = True"
        )
        task = started(compile_code(source), env)
        await env["started"].wait()  # type: ignore[attr-defined]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return env

    assert asyncio.run(main())["cleaned"] is True


# --- annotations of 3.14 --------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_annotations_are_evaluated_when_asked_for() -> None:
    source = (
        "x: Later = 1\nif x > 1:\n  y: Never\nelse:\n  z: list[Later]\nformat: [format]\nreturn 1"
    )
    ours: Env = {}
    assert run(source, ours) == 1
    theirs: Env = {}
    exec_as_module(source.removesuffix("\nreturn 1"), theirs)
    for env in (ours, theirs):
        annotate = env["__annotate__"]
        assert isinstance(annotate, types.FunctionType)
        with pytest.raises(NameError, match="Later"):
            annotate(1)
        with pytest.raises(NotImplementedError):
            annotate(4)
        env["Later"] = int
        assert annotate(1) == {"x": int, "z": list[int], "format": [format]}
        assert annotate.__qualname__ == "__annotate__"


# --- tracebacks -----------------------------------------------------------------------------------


def formatted(source: str, env: Env | None = None, **at: object) -> list[str]:
    """The traceback of what a snippet raises, without the frames down to `Code.run`."""
    try:
        run(source, env, **at)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not Code.run.__code__:
            trace = trace.tb_next
        assert trace is not None
        return traceback.format_exception(type(error), error, trace.tb_next)
    raise AssertionError("nothing was raised")


def test_code_without_a_file_has_a_virtual_one_and_no_source_text() -> None:
    lines = formatted("raise RuntimeError('nolocation')")
    assert lines[-2:] == [
        '  File "<Snex.Code>", line 1, in <module>\n',
        "RuntimeError: nolocation\n",
    ]


@pytest.mark.parametrize(("line", "first"), [(0, 1), (1, 1), (2, 2), (565, 565)])
def test_the_first_line_is_the_one_given(line: int, first: int) -> None:
    lines = formatted("1 / 0", file="example.exs", line=line)
    assert lines[1].startswith(f'  File "example.exs", line {first}, in <module>')
    lines = formatted("x = 1\n1 / 0", file="example.exs", line=line)
    assert lines[1].startswith(f'  File "example.exs", line {first + 1}, in <module>')


def test_frames_lie_in_the_file_given_so_many_lines_down(tmp_path: Path) -> None:
    file = tmp_path / "example.exs"
    file.write_text(
        'defmodule M do\n  ~p"""\n  def f():\n    raise ValueError("x")\n  f()\n  """\n'
    )
    lines = formatted('def f():\n  raise ValueError("x")\nf()', file=str(file), line=3)
    assert lines[1].splitlines()[:2] == [f'  File "{file}", line 5, in <module>', "    f()"]
    assert lines[2].splitlines()[:2] == [
        f'  File "{file}", line 4, in f',
        '    raise ValueError("x")',
    ]


def test_names_in_frames_and_messages_are_those_of_a_module() -> None:
    env: Env = {}
    names = "import sys\nf = lambda: sys._getframe()\nframe = sys._getframe()"
    run(names, env)
    frame = env["frame"]
    assert isinstance(frame, types.FrameType)
    assert frame.f_code.co_name == "<module>"
    if sys.version_info >= (3, 11) and CPYTHON:
        assert frame.f_code.co_qualname == "<module>"
    assert frame.f_locals is frame.f_globals is env
    function = env["f"]
    assert isinstance(function, types.FunctionType)
    if sys.version_info >= (3, 11) and CPYTHON:
        assert function.__code__.co_qualname == "<lambda>"


def test_a_failing_star_import_shows_its_own_line_only() -> None:
    lines = formatted("x = 1\nfrom no_such_module_anywhere import *", line=11)
    ours = [line for line in lines if "<Snex.Code>" in line]
    assert ours == ['  File "<Snex.Code>", line 12, in <module>\n']


# --- what cannot be compiled ----------------------------------------------------------------------

REFUSED = [
    "yield 1",
    "x = yield from y",
    "if a:\n  [1, (yield)]",
    "def f(a=(yield)): pass",
    "lambda a=(yield): a",
    "class A((yield)): pass",
    "class A:\n  x = (yield)",
    "@(yield)\ndef f(): pass",
    "x = [(yield) for a in b]",
    "x = [a for a in (yield)]",
    "x = (a for a in (yield))",
    "x: (yield) = 1",
    "def f(a: (yield)): pass",
    "nonlocal x",
    "if x:\n  y = 1\n  nonlocal z",
    "class A:\n  return 1",
    "class A:\n  await x",
    "def f():\n  await x",
    "lambda: await x",
    "break",
    "if x:\n  continue",
    "x = 1\nglobal x",
    "x: int = 1\nglobal x",
    "from __future__ import no_such_feature",
    "x = 1\nfrom __future__ import annotations",
    "def f():\n  from math import *",
    "__debug__ = 1",
    "None = 1",
    "x = = 1",
    "x = (1,\n",
    "  x = 1",
    "if x:\nx",
    "'unterminated",
    "f(a=1, a=2)",
    "def f(a, a): pass",
    "[x := 1 for x in y]",
    "class A:\n  [x := 1 for y in z]",
    "*a",
    "a + 1 = 2",
    "1" * 5000,
    "\0",
    "x = 1\n\0",
    "x = '\ud800'",
    "\N{GREEK QUESTION MARK}",
    "async def f():\n  def g(): await x",
]


@pytest.mark.parametrize("source", REFUSED)
@pytest.mark.parametrize("context", ["{}", "x = 1\nif x: return\n{}", "await x\n{}"])
def test_what_module_code_may_not_is_a_syntax_error_with_file_and_line(
    source: str, context: str
) -> None:
    with pytest.raises((SyntaxError, ValueError, UnicodeEncodeError)):  # at home in a module
        compile(context.format(source).replace("return", "pass"), "<x>", "exec",
                ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)  # fmt: skip
    text = context.format(source)
    with pytest.raises(SyntaxError) as raised:
        compile_code(text, "lib/some.ex", 41)
    assert raised.value.filename == "lib/some.ex"
    assert raised.value.lineno is not None
    assert 41 <= raised.value.lineno <= 41 + text.count("\n") + 1


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\ny = = 2", 12),
        ("a\nb\nyield 1", 13),
        ("a\n\0", 12),
        ("\n\n'\ud800'", 13),
        ("if a:\n  nonlocal b", 12),
        ("a\nreturn (\n b c)", 13),
    ],
)
def test_the_line_of_a_syntax_error(source: str, line: int) -> None:
    with pytest.raises(SyntaxError) as raised:
        compile_code(source, line=11)
    assert raised.value.lineno == line


DEEP = {
    "sum": ("a", " + b", ""),
    "attributes": ("a", ".b", ""),
    "calls": ("a", "()", ""),
    "signs": ("", "-", "1"),
    "parentheses": ("", "(", "1"),
    "lambdas": ("", "lambda:", "1"),
    "elif": ("if a: pass\n", "elif b: pass\n", ""),
}


@pytest.mark.parametrize(("start", "part", "end"), DEEP.values(), ids=DEEP.keys())
def test_source_that_is_too_deep_is_a_syntax_error_and_never_a_crash(
    start: str, part: str, end: str
) -> None:
    # In another process: on CPython 3.10 the parser overflows the stack when it is not stopped.
    program = (
        "import sys\nfrom snex_runtime.code import compile_code\n"
        "try: compile_code(sys.argv[1] + sys.argv[2] * 300_000 + sys.argv[3], 'deep.ex', 6)\n"
        "except SyntaxError as error: sys.exit(f'{error.filename}:{error.lineno}: {error.msg}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, start, part, end],
        cwd=Path(code_module.__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("deep.ex:6: ")
    assert "Traceback" not in done.stderr


def test_what_is_not_quite_too_deep_compiles() -> None:
    for start, part, end in (
        ("x = 1", " + 1", ""),
        ("if 0: pass\n", "elif 0: pass\n", "else: x = 1"),
    ):
        run(start + part * 200 + end)


@pytest.mark.untraced
def test_a_large_source_compiles() -> None:
    env: Env = {"n": 0}
    run("n += 1\n" * 50_000, env)
    assert env["n"] == 50_000


@pytest.mark.parametrize(
    "line", [-1, MAX_LINE + 1, 10**30, 10**5000], ids=["-1", "more", "much", "huge"]
)
def test_a_line_that_no_file_has_is_refused(line: int) -> None:
    told = str(line) if line < 10**100 else "<an int of 16610 bits>"
    with pytest.raises(SyntaxError, match=f"at line {told} of its file"):
        compile_code("x", line=line)


def test_the_largest_line_is_taken() -> None:
    assert formatted("1 / 0", line=MAX_LINE)[1].startswith(
        f'  File "<Snex.Code>", line {MAX_LINE}, in <module>'
    )


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_any_text_compiles_or_is_a_syntax_error(source: str) -> None:
    with contextlib.suppress(SyntaxError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_code(source, "f.ex", 3)


SIMPLE_STATEMENTS = [
    "x = 1",
    "x += 1",
    "i = 3",
    "y: int = 2",
    "y: str",
    "del x",
    "import os.path",
    "f()",
    "def f(): global x; x = 4",
    "class A: x = x",
    "[z := i for i in range(2)]",
    "g = lambda: x",
    "w = g()",
    "pass",
    "exec('x = 5')",
    "locals()",
    "raise ValueError",
    "return",
]


if sys.version_info[:2] != (3, 12):
    # 3.12 loses variables of a module when this follows an inlined comprehension.
    SIMPLE_STATEMENTS.append("from math import *")


def block(head: str, body: list[str]) -> str:
    lines = [f" {line}" for statement in body for line in statement.split("\n")]
    end = ["except NameError as e: v = str(e)"] if head == "try:" else []
    return "\n".join([head, *lines, *end])


STATEMENTS = st.recursive(
    st.sampled_from(SIMPLE_STATEMENTS),
    lambda inner: st.builds(
        block,
        st.sampled_from(["if x:", "for i in range(2):", "while 0:", "try:"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


class _Returned(BaseException):
    """What `return` is replaced by in a module: nothing in the program catches it."""


@pytest.mark.untraced
@given(st.lists(STATEMENTS, max_size=6).map("\n".join))
def test_generated_programs_do_what_they_do_in_a_module(source: str) -> None:
    def as_module(source: str, env: Env) -> None:
        env["returned"] = _Returned
        with contextlib.suppress(_Returned):
            exec_as_module(source.replace("return", "raise returned"), env)

    def as_snippet(source: str, env: Env) -> None:
        env["returned"] = _Returned
        assert run(source, env) is None

    assert result_of(as_snippet, source, {}) == result_of(as_module, source, {})


# --- Code and the cache ---------------------------------------------------------------------------


def test_an_environment_may_have_a_name_and_builtins_of_its_own() -> None:
    assert run("return __name__", {"__name__": "here"}) == "here"
    if CPYTHON:  # PyPy knows one builtins only
        assert run("return len([])", {"__builtins__": {"len": lambda _: "mine"}}) == "mine"


def test_one_code_runs_in_many_environments() -> None:
    code = compile_code("x += 1\nreturn x")
    first: Env = {"x": 1}
    second: Env = {"x": 10}
    assert [code.run(first), code.run(second), code.run(first)] == [2, 11, 3]
    assert second["x"] == 11


@pytest.mark.skipif(not CPYTHON, reason="PyPy keeps the first globals of a code object")
def test_a_run_keeps_no_reference_to_its_environment() -> None:
    class Witness:
        pass

    witness = Witness()
    gone = weakref.ref(witness)
    compile_code("y = x\nreturn 1").run({"x": witness})
    del witness
    gc.collect()
    assert gone() is None


def test_future_imports_of_the_runtime_are_not_the_snippets() -> None:
    assert run("def f(a: 1 + 1): pass\nreturn f.__annotations__") == {"a": 2}


def test_the_same_source_is_compiled_once() -> None:
    first = compile_code("cached = 1")
    assert compile_code("".join(["cached", " = 1"])) is first
    assert compile_code("cached = 1", "other.ex") is not first
    assert compile_code("cached = 1", VIRTUAL_FILE, 3) is not first


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    used = compile_code("used = 1")
    unused = compile_code("unused = 1")
    for number in range(MAX_SNIPPETS - 1):
        compile_code(f"x = {number}")
        if number % 100 == 0:
            assert compile_code("used = 1") is used
    assert compile_code("used = 1") is used
    assert compile_code("unused = 1") is not unused


def test_long_source_is_not_kept() -> None:
    longest = "#" * MAX_KEPT_SOURCE
    assert compile_code(longest) is compile_code(longest)
    assert compile_code(longest + "#") is not compile_code(longest + "#")


def test_a_syntax_error_is_not_kept() -> None:
    for _ in range(2):
        with pytest.raises(SyntaxError):
            compile_code("x = = 1")


# While threads are traced, the parser of Python 3.11 may give way in the middle, and miscounts.
@pytest.mark.untraced
def test_compiling_in_threads() -> None:
    sources = [f"return {number} * x" for number in range(200)]
    wrong: list[object] = []

    def work() -> None:
        for number, source in enumerate(sources):
            if compile_code(source).run({"x": 2}) != number * 2:
                wrong.append(source)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_repr_says_where_it_is() -> None:
    assert repr(compile_code("x = 1", "a.ex", 5)) == "<Code a.ex:5>"
    assert repr(compile_code("await x")) == "<async Code <Snex.Code>:1>"


def test_builtins_are_found_where_the_environment_names_none() -> None:
    env: Env = {}
    assert run("return len([1])", env) == 1
    assert env["__builtins__"] in (builtins, vars(builtins))


# --- imports that are lazy (PEP 810) --------------------------------------------------------------

has_lazy_imports = pytest.mark.skipif(sys.version_info < (3, 15), reason="new in Python 3.15")

LAZY = [
    "lazy import {m}\nreturn [loaded(), {m}.x, loaded()]",
    "lazy import {m} as other\nreturn [loaded(), other.x, loaded()]",
    "lazy from {m} import x\nreturn [loaded(), x, loaded()]",
    "if True:\n  lazy import {m}\nreturn [loaded(), {m}.x, loaded()]",
    "for _ in [1]:\n  lazy import {m}\nreturn [loaded(), {m}.x, loaded()]",
    "import sys; lazy import {m}, os\nreturn [loaded(), {m}.x, loaded()]",
    "lazy import {m}\ndef f(): return {m}.x\nreturn [loaded(), f(), loaded()]",
    "__lazy_modules__ = ['{m}']\nimport {m}\nreturn [loaded(), {m}.x, loaded()]",
    "lazy import {m}\nimport asyncio\nawait asyncio.sleep(0)\nreturn [loaded(), {m}.x, loaded()]",
]
NOT_LAZY = [
    "import {m}\nreturn [loaded(), {m}.x, loaded()]",
    "__lazy_modules__ = ['{m}']\ntry:\n  import {m}\nfinally: pass\n"
    "return [loaded(), {m}.x, loaded()]",
    "__lazy_modules__ = ['{m}']\ndef f():\n  import {m}\n  return {m}\n"
    "return [f() and loaded(), f().x, loaded()]",
]


@has_lazy_imports
@pytest.mark.parametrize(
    ("source", "before"), [(each, False) for each in LAZY] + [(each, True) for each in NOT_LAZY]
)
@pytest.mark.parametrize("many_names", [False, True], ids=["few names", "many names"])
def test_a_lazy_import_is_one(
    source: str,
    before: bool,
    many_names: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = f"lazy_{abs(hash((source, many_names)))}"
    (tmp_path / f"{module}.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    env: Env = {"__name__": "__snex__", "loaded": lambda: module in sys.modules}
    names = "\n".join(f"name{i} = {i}" for i in range(300)) + "\n" if many_names else ""
    assert value_of(names + source.format(m=module), env) == [before, 1, True]
    sys.modules.pop(module, None)


def value_of(source: str, env: Env) -> object:
    code = compile_code(source)
    result = code.run(env)
    return asyncio.run(result) if code.is_async else result  # type: ignore[arg-type]


@has_lazy_imports
@pytest.mark.parametrize(
    "source",
    [
        "try:\n  lazy import a\nfinally: pass",
        "try: pass\nexcept: lazy import a",
        "try: pass\nexcept: pass\nelse:\n  if x:\n    lazy from a import b",
        "try: pass\nexcept* ValueError: lazy import a",
        "try:\n  lazy from a import *\nfinally: pass",
        "x = 1; lazy from a import *",
        "lazy from __future__ import annotations",
        "def f():\n  lazy import a",
        "class A:\n  lazy import a",
    ],
)
def test_a_lazy_import_is_refused_where_a_module_refuses_it(source: str) -> None:
    with pytest.raises(SyntaxError) as pythons:
        compile(source, "<file>", "exec")
    with pytest.raises(SyntaxError) as ours:
        compile_code(source, "<file>")
    assert ours.value.args[0] == pythons.value.args[0]
    assert (ours.value.lineno, ours.value.offset) == (pythons.value.lineno, pythons.value.offset)


@has_lazy_imports
def test_a_lazy_import_that_fails_tells_where_it_stands() -> None:
    lines = formatted("x = 1\nlazy import no_such_module_anywhere as m\nm.x", file="/some/file.ex")
    assert any('File "/some/file.ex", line 2' in line for line in lines)
    assert any('File "/some/file.ex", line 3' in line for line in lines)


def test_code_without_lazy_imports_is_left_as_it_is() -> None:
    assert value_of("lazy = 5\nimport os\nreturn lazy, os.sep", {}) == (5, "/")

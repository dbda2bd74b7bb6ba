"""The module behind ``__name__``: what looks definitions up by name finds them."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snex_runtime import namespace, serde
from snex_runtime.namespace import NAME, Namespace, here, root_of
from tests.support.pair import Pair, pair

POINT = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

@dataclass
class Point:
    x: int
    y: Other
    made: ClassVar[int] = 0

class Other: pass
"""

CASES = {
    "a dataclass whose annotations are text": (
        POINT + "from dataclasses import fields\nreturn [f.name for f in fields(Point)]",
        ["x", "y"],
    ),
    "type hints": (
        POINT + "import typing\nreturn typing.get_type_hints(Point)['y'] is Other",
        True,
    ),
    "pickle": (
        "import pickle\nclass P:\n  def __init__(self, x): self.x = x\n"
        "def f(): return 1\n"
        "copy, g = pickle.loads(pickle.dumps((P(7), f)))\nreturn type(copy) is P, copy.x, g is f",
        (True, 7, True),
    ),
    "pickle, in Python": (
        "import pickle, io\nclass P: pass\nfile = io.BytesIO()\n"
        "pickle._Pickler(file).dump(P())\nreturn type(pickle.loads(file.getvalue())) is P",
        True,
    ),
    "copyreg": ("import copy\nclass P: pass\nreturn type(copy.deepcopy(P())) is P", True),
    "an enumeration": (
        "import enum, pickle\nclass E(enum.Enum):\n  A = 1\n"
        "return pickle.loads(pickle.dumps(E.A)) is E.A",
        True,
    ),
    "a global enumeration": (
        "import enum, sys\n"
        "if sys.version_info < (3, 11): return 1\n"
        "@enum.global_enum\nclass E(enum.IntEnum):\n  A = 1\nreturn int(A)",
        1,
    ),
    "a named tuple": (
        "import collections, pickle\nT = collections.namedtuple('T', 'a')\n"
        "return pickle.loads(pickle.dumps(T(1))).a",
        1,
    ),
    "the module itself": (
        "import sys\nmodule = sys.modules[__name__]\n"
        "return vars(module) is globals(), module.__dict__ is globals()",
        (True, True),
    ),
    "an import": (f"import {NAME}\nx = 5\nreturn {NAME}.x", 5),
    "its attributes": (
        "import sys\nmodule = sys.modules[__name__]\nmodule.y = 6\nz = y\ndel module.y\n"
        "return z, hasattr(module, 'y'), 'y' in dir(module), 'z' in dir(module)",
        (6, False, False, True),
    ),
    "inspect": (
        "import inspect, sys\nclass C: pass\ndef f(): pass\nm = sys.modules[__name__]\n"
        "return inspect.getmodule(C) is m, inspect.getmodule(f) is m",
        (True, True),
    ),
    "a process pool": (
        "import concurrent.futures, multiprocessing\n"
        "def double(x): return 2 * x\n"
        "fork = multiprocessing.get_context('fork')\n"
        "with concurrent.futures.ProcessPoolExecutor(1, mp_context=fork) as pool:\n"
        "  return list(pool.map(double, [1, 2]))",
        [2, 4],
    ),
    "its name": ("class C: pass\nreturn __name__, C.__module__, repr(C)", None),
}


@pytest.fixture
async def both() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def make_env(both: Pair, **options: Any) -> Any:
    ok, env = await both.call("make_env", {}, options)
    assert ok == "ok", env
    return serde.to_typed(env)


async def evaluate(both: Pair, code: str, to: Any = None, **variables: object) -> Any:
    answer = await both.call("eval", code, variables, to=to)
    assert answer[0] == "ok", answer
    return answer[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ["server", "environment", "root", "async"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_what_is_defined_is_found(both: Pair, case: str, where: str) -> None:
    code, expected = CASES[case]
    if expected is None:
        expected = (NAME, NAME, f"<class '{NAME}.C'>")
    if where == "async":
        code = f"import asyncio\nawait asyncio.sleep(0)\n{code}"
        if "__future__" in code:
            code = "from __future__ import annotations\n" + code.replace(
                "from __future__ import annotations", ""
            )
    to = await make_env(both) if where == "environment" else None
    request = "init" if where == "root" else "eval"
    assert await both.call(request, code, {}, to=to) == ("ok", expected)


async def test_what_an_init_script_defines(both: Pair) -> None:
    script = POINT + "import sys\nassert vars(sys.modules[__name__]) is globals()"
    assert await both.server.init(script, "<init>") is None
    dump = "import pickle\nreturn pickle.loads(pickle.dumps(Point(1, 2))).y"
    assert await evaluate(both, dump) == 2
    assert await evaluate(both, dump, await make_env(both)) == 2
    root = sys.modules[NAME]
    assert isinstance(root, types.ModuleType)
    assert vars(root) is both.server.root


async def test_the_same_names_in_two_environments(both: Pair) -> None:
    one, two = await make_env(both), await make_env(both)
    define = "import pickle\nclass P:\n  kind = {!r}\np = P()\npickled = pickle.dumps(p)"
    await evaluate(both, define.format("one"), one)
    await evaluate(both, define.format("two"), two)
    load = "return pickle.loads(pickled).kind, type(pickle.loads(pickled)) is P"
    assert await evaluate(both, load, one) == ("one", True)
    assert await evaluate(both, load, two) == ("two", True)


async def test_a_pickle_loads_where_the_same_is_defined(both: Pair) -> None:
    define = "import pickle\nclass P:\n  def __init__(self): self.x = 3"
    one, two = await make_env(both), await make_env(both)
    await evaluate(both, define, one)
    await evaluate(both, define, two)
    dump = "import base64\nreturn base64.b64encode(pickle.dumps(P())).decode()"
    pickled = await evaluate(both, dump, one)
    await both.call("destroy_env", one)
    load = "import base64\nreturn pickle.loads(base64.b64decode(pickled)).x"
    assert await evaluate(both, load, two, pickled=pickled) == 3


async def test_copies_find_what_they_copied(both: Pair) -> None:
    one = await make_env(both)
    await evaluate(both, "import pickle\nclass P: pass", one)
    two = await make_env(both, **{"from": one})
    await both.call("destroy_env", one)
    code = "return type(pickle.loads(pickle.dumps(P()))) is P"
    assert await evaluate(both, code, two) is True


async def test_threads_find_what_their_environment_defines(both: Pair) -> None:
    env = await make_env(both)
    code = (
        "import pickle, threading\nclass P: pass\nout = []\n"
        "def work(): out.append(type(pickle.loads(pickle.dumps(P()))) is P)\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\nreturn out"
    )
    assert await evaluate(both, code, env) == [True]


async def test_a_pickler_by_value_finds_nothing(both: Pair) -> None:
    """cloudpickle sends what is in no module that can be imported elsewhere; it asks like this."""
    pickler = types.ModuleType("joblib.externals.cloudpickle.cloudpickle")
    source = "def look(module, name):\n  return getattr(module, name, None)"
    exec(source, vars(pickler))
    both.server.provide(pickler=pickler)
    code = (
        "import sys\ndef f(): pass\nmodule = sys.modules[__name__]\n"
        "return pickler.look(module, 'f'), pickler.look(module, '__name__')"
    )
    for to in (None, await make_env(both)):
        assert await evaluate(both, code, to) == (None, NAME)


class TestNamespace:
    def test_outside_of_environments_it_is_the_root(self) -> None:
        module = Namespace()
        root = root_of(module)
        assert root == {"__name__": NAME}
        module.x = 1
        assert root["x"] == 1
        del module.x
        assert root == {"__name__": NAME}
        with pytest.raises(AttributeError, match="x"):
            del module.x
        with pytest.raises(AttributeError):
            module.x  # noqa: B018

    def test_inside_of_one_it_is_that(self) -> None:
        module = Namespace()
        root_of(module)["of_the_root"] = 0
        variables: dict[str, object] = {"__name__": NAME, "x": 1}
        token = here.set(variables)
        try:
            assert vars(module) is variables
            assert module.x == 1
            module.y = 2
            assert variables["y"] == 2
            assert module.of_the_root == 0
        finally:
            here.reset(token)
        assert not hasattr(module, "x")

    def test_only_inspect_is_told_a_file(self) -> None:
        module = Namespace()
        assert not hasattr(module, "__file__")
        with pytest.raises(TypeError):
            inspect.getfile(module)

    async def test_of_two_runtimes_the_one_that_is_left_has_the_name(self) -> None:
        before = sys.modules.get(NAME)
        async with pair() as one:
            first = sys.modules[NAME]
            async with pair() as two:
                assert vars(sys.modules[NAME]) is two.server.root
                code = "import sys\nreturn vars(sys.modules[__name__]) is globals()"
                assert await evaluate(one, code) is True
                assert await evaluate(two, code) is True
                two.server.exit()
            assert sys.modules[NAME] is first
            one.server.exit()
            assert sys.modules.get(NAME) is before

    def test_who_goes_first_leaves_the_last_in_place(self) -> None:
        before = sys.modules.get(NAME)
        first, second = Namespace(), Namespace()
        namespace.install(first)
        namespace.install(second)
        namespace.remove(first)
        assert sys.modules[NAME] is second
        namespace.remove(second)
        assert sys.modules.get(NAME) is before

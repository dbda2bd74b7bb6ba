"""The module ``snex``: what it exports, and that what its documentation shows is so."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import snex
from snex_runtime import (
    batches,
    environments,
    interface,
    interrupts,
    logging,
    mailboxes,
    origin,
    registered,
    serde,
    serve,
    subscriptions,
)

EXPORTS = {
    "Atom", "Batched", "BeamModuleProxy", "DistinctAtom", "Elixir", "ElixirError", "EncodingOpt",
    "EncodingOpts", "LoggingHandler", "Mailbox", "ProducerError", "Subscription", "Term", "batched",
    "call", "cast", "decoder", "encoder", "io_loop_for_connection", "mailbox", "progress", "send",
    "serve", "serve_forever", "set_custom_encoder", "subscribe", "traceparent",
}  # fmt: skip

DOCUMENTED = (
    batches,
    environments,
    interface,
    interrupts,
    logging,
    mailboxes,
    origin,
    registered,
    serde,
    serve,
    subscriptions,
    snex,
    snex.models,
    snex.interface,
)


@pytest.fixture(autouse=True)
def custom_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples set what is the process's."""
    monkeypatch.setattr(serde, "_custom", None)
    monkeypatch.setattr(registered, "_encoders", {})
    monkeypatch.setattr(registered, "_decoders", {})


def test_exports() -> None:
    assert set(snex.__all__) == EXPORTS
    assert list(snex.__all__) == sorted(snex.__all__)
    for name in EXPORTS:
        assert getattr(snex, name) is not None


@pytest.mark.parametrize("module", [snex.models, snex.interface], ids=["models", "interface"])
def test_modules_of_the_facade(module: ModuleType) -> None:
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is getattr(snex, name)


def test_modules_of_the_facade_can_be_imported_first() -> None:
    for statement in (
        "from snex.models import Atom, DistinctAtom, EncodingOpt, EncodingOpts, Term",
        "from snex.interface import call, cast, send",
        "import snex.interface, snex.models; snex.interface.send, snex.models.Atom",
        "import snex; snex.interface.send, snex.models.Atom",
    ):
        subprocess.run([sys.executable, "-c", statement], check=True)


def test_parameters_have_the_names_that_callers_use() -> None:
    for function in (snex.io_loop_for_connection, snex.serve, snex.serve_forever):
        assert list(inspect.signature(function).parameters)[:2] == ["reader", "writer"]


@pytest.mark.parametrize(
    "name", sorted(EXPORTS - {"Elixir", "EncodingOpt", "EncodingOpts", "Term"})
)
def test_public_names_have_examples(name: str) -> None:
    documentation = inspect.getdoc(getattr(snex, name))
    by_others = {"Term", "serve_forever", "io_loop_for_connection", "ElixirError"}
    if name in by_others | {"Mailbox", "ProducerError", "Subscription"}:
        assert documentation  # the example is that of `serve`, `call`, `mailbox` and `subscribe`
    else:
        assert documentation is not None
        assert ">>> " in documentation


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    """Each docstring example runs, and gives what it shows."""
    result = doctest.testmod(module, extraglobs={"interface": interface})
    assert result.failed == 0


def test_examples_were_found() -> None:
    counted = [
        sum(len(test.examples) for test in doctest.DocTestFinder().find(module))
        for module in (snex, interface, logging, serde, serve)
    ]
    assert all(counted), counted


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda module: module.__name__)
def test_everything_public_is_typed_and_documented(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.returns is not None, node.name
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue  # what all of them do is said once
            if not node.name.startswith("_") and node in tree.body:
                assert ast.get_docstring(node), node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_importing_it_starts_nothing() -> None:
    """It can be imported anywhere: no thread, no loop, no signal handler, no third party."""
    script = """
import signal, sys, threading
before = signal.getsignal(signal.SIGURG)
import snex
assert threading.active_count() == 1
assert signal.getsignal(signal.SIGURG) == before
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(name for name in foreign if name.startswith("snex")), "uvloop" in foreign)
"""
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert out == "['snex', 'snex_node', 'snex_runtime'] False\n"

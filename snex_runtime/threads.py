"""Threads of evaluated code run in the context of the code that started them.

Python does this itself only where ``sys.flags.thread_inherit_context`` is set. So as long as there
is a runtime `threading.Thread.start` does it for code that runs in an environment, and
`ThreadPoolExecutor.submit` for what such code submits; for all other code they are as they were. A
pool's worker inherits nothing: it serves whoever submits, and what it kept of the first would stay
as long as the pool.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, thread
from typing import Any, Final

from snex_runtime.contexts import copy_for_thread
from snex_runtime.namespace import here

__all__ = ["install", "remove"]

_start: Final = threading.Thread.start
_submit: Final = ThreadPoolExecutor.submit
_lock: Final = threading.Lock()
_installed = 0


def install() -> None:
    """Have threads inherit contexts, until `remove` has been called as often."""
    global _installed  # noqa: PLW0603
    with _lock:
        _installed += 1
        if _installed == 1:
            threading.Thread.start = _start_inheriting  # type: ignore[method-assign]
            ThreadPoolExecutor.submit = _submit_inheriting  # type: ignore[method-assign,assignment]


def remove() -> None:
    """Undo `install`; what others have put in place meanwhile stays."""
    global _installed  # noqa: PLW0603
    with _lock:
        _installed -= 1
        if _installed:
            return
        if threading.Thread.start is _start_inheriting:
            threading.Thread.start = _start  # type: ignore[method-assign]
        if ThreadPoolExecutor.submit is _submit_inheriting:
            ThreadPoolExecutor.submit = _submit  # type: ignore[method-assign]


def _start_inheriting(self: threading.Thread) -> None:
    """Start the thread's activity, in a copy of the context of the code that starts it."""
    if here.get() is None or getattr(self, "_context", None) is not None:
        return _start(self)  # not of evaluated code, or with a context that it was given (3.14)
    if getattr(self, "_target", None) is _worker:
        return contextvars.Context().run(_start, self)
    context, run = copy_for_thread(), self.run

    def run_in_context() -> None:
        vars(self).pop("run", None)  # or the thread would refer to itself
        context.run(run)

    self.run = run_in_context  # type: ignore[method-assign]
    try:
        _start(self)
    except BaseException:
        vars(self).pop("run", None)
        raise


_worker: Final = getattr(thread, "_worker")  # noqa: B009 - it has no public name


def _submit_inheriting(
    self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    """Submit a call, to be made in a copy of the context of the code that submits it."""
    if here.get() is None or _runs_elsewhere(self):
        return _submit(self, fn, *args, **kwargs)
    return _submit(self, copy_for_thread().run, fn, *args, **kwargs)


def _runs_elsewhere(executor: ThreadPoolExecutor) -> bool:
    """Whether it sends calls to other interpreters, which take no context (3.14)."""
    module = sys.modules.get("concurrent.futures.interpreter")
    return module is not None and isinstance(executor, module.InterpreterPoolExecutor)

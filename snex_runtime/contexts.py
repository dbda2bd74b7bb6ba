"""The contexts (`contextvars`) that evaluated code runs in.

Each environment has one, copied from that of the root environment when it is made; what is thrown
away after a request runs in a copy that is thrown away with it. So what one caller sets, by
``decimal.getcontext().prec = 5`` or ``numpy.seterr``, is not another's, and nothing is kept of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from types import coroutine
from typing import Any, TypeVar

from snex_runtime.interrupts import Deadline, current, now
from snex_runtime.origin import Origin, origin

__all__ = ["copied", "copy_for_thread", "in_steps", "mutable_in", "step_in_thread"]

T = TypeVar("T")
Enter = Callable[..., Any]
"""Calls a function with arguments in a context, as `Context.run` does."""


def mutable_in(context: Context) -> tuple[ContextVar[Any], ...]:
    """The variables whose values a copy of ``context`` must not share.

    The decimal context is one object, which is changed in place: only copied it is another's.
    """
    decimal: Any = sys.modules.get("decimal")
    if decimal is None:
        return ()
    return tuple(name for name, value in context.items() if isinstance(value, decimal.Context))


def copied(context: Context, mutable: Iterable[ContextVar[Any]]) -> Context:
    """A copy of ``context`` that shares no object with it, as far as `mutable_in` knows."""
    copy = context.copy()
    for name in mutable:
        copy.run(name.set, context[name].copy())
    return copy


def copy_for_thread() -> Context:
    """What a thread inherits of the context that starts it: all but the deadline.

    Only code on the main thread is interrupted.
    """
    context = copy_context()
    context = copied(context, mutable_in(context))
    context.run(current.set, None)
    return context


@coroutine
def in_steps(
    enter: Enter,
    deadline: Deadline,
    asked: Origin | None,
    work: Coroutine[Any, Any, T],
    *,
    on_loop: bool = True,
) -> Generator[Any, Any, T]:
    """Await ``work``, each step of which runs in the context of ``enter``.

    A task of its own context would lose what the code sets, and one of that context would show the
    origin and the deadline of this request to others that are run there meanwhile. ``on_loop``: it
    is the node's loop that runs it, and not one of a thread's own.
    """
    step = _step_on_loop if on_loop else step_in_thread
    resume: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        try:
            awaited = enter(step, deadline, asked, resume, value)
        except StopIteration as done:
            value = None  # an exception that led here knows this frame, and all that is in others
            result: T = done.value
            return result
        try:
            value = yield awaited
            resume = work.send
        except BaseException as error:  # it is cancelled, interrupted or closed
            value = error
            resume = work.throw


def step_in_thread(
    deadline: Deadline, asked: Origin | None, resume: Callable[[Any], Any], value: object
) -> Any:
    """Call ``resume`` with ``value`` as part of the work of ``deadline``, for who ``asked``."""
    before, limited = origin.set(asked), current.set(deadline)
    try:
        return resume(value)
    finally:
        current.reset(limited)
        origin.reset(before)


def _step_on_loop(
    deadline: Deadline, asked: Origin | None, resume: Callable[[Any], Any], value: object
) -> Any:
    before, limited = origin.set(asked), current.set(deadline)
    outer, now.running = now.running, deadline
    try:
        return resume(value)
    finally:
        now.running = outer
        current.reset(limited)
        origin.reset(before)

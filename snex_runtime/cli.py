"""The ``snex-node`` command."""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

from snex_node import __version__, epmd
from snex_node.cookie import CookieError, find_cookie
from snex_node.errors import (
    CallTimeoutError,
    ConnectError,
    NodeError,
    NodeStartError,
    ProcessExitError,
)
from snex_node.node import Node
from snex_node.services import import_function
from snex_node.system import forks, tasks
from snex_node.system.addresses import is_loopback, resolve
from snex_node.wire.describe import inspect, short
from snex_node.wire.etf import EncodeError
from snex_node.wire.terms import Atom
from snex_runtime import (
    child,
    doctor,
    formats,
    journal,
    loops,
    metrics,
    overview,
    search_path,
    serde,
    standard_files,
    watcher,
)
from snex_runtime.crew import RESTARTS, Crew
from snex_runtime.executors import default_threads
from snex_runtime.front import Front
from snex_runtime.server import Server
from snex_runtime.service import Service
from snex_runtime.sources import decode_script, read_script
from snex_runtime.standard_files import discard
from snex_runtime.stderr import log_to_stderr
from snex_runtime.workers import ScriptFailedError, WorkerStartError

DEFAULT_NAME = "py@127.0.0.1"

DEMO = "snex_runtime.demo"
"""It imports what no other command needs."""

GRACE = 5.0
"""Seconds that code which blocks the event loop has after SIGTERM or Ctrl-C to give it a turn."""

MARGIN = 2.0
"""Seconds beyond its limit within which a node tells that it has stopped what ran there: 0.25 s
until it sees that the time is over, and 1 s for ``finally`` blocks that do not await."""

LEAVE = 0.5
"""Seconds that a command which is done waits for a thread that it cannot stop. A name server that
does not answer keeps one for as long as the system asks it, 10 s and more."""

SIZED_EVERY: Final = 10.0
"""Seconds between two questions of `top` for the sizes of environments."""

MOST: Final = 2**62
"""The largest whole number that an option takes."""

LONGEST = 4_294_967.0
"""Seconds that an option may ask for: 49 days, the longest time limit of Erlang (2^32 ms)."""

MAX_WRITTEN: Final = 64 * 1024
"""Characters of a value that `eval` prints where Python itself does not write it: one that is
nested too deeply, or that has an integer of too many digits."""

_log = logging.getLogger(__name__)


class CommandError(Exception):
    """The command failed; the message, for the terminal, says what to do."""


_TOLD: Final = (
    *(CommandError, CookieError, NodeStartError, ConnectError, metrics.MetricsError),
    ValueError,
)
"""What says enough by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a failure, 2 for wrong usage."""
    standard_files.open_missing()
    try:
        code = _main(argv)
        _say()  # what others printed: nothing of it may fail when the interpreter ends
    except (CommandError, ValueError) as error:  # the latter: there is no such event loop
        _complain(error)
        return 1
    return code


def _main(argv: Sequence[str] | None) -> int:
    try:
        args = _parse(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    args.log = log_to_stderr(args.log_level, args.log_format)
    try:
        with _leaving(args) as leave:
            return loops.run(_run(args, leave), args.loop)
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Raises `SystemExit` when help was asked for, or is what is needed."""
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(argv)
        if args.run is None:
            parser.print_help()
            raise SystemExit(2)
        if args.run is _eval:
            _find_code(args, rest)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    except BrokenPipeError:
        discard(sys.stdout)
        raise SystemExit(0) from None
    for name in args.needs:  # now, while no module of a user's can take its place
        import_module(name)
    return args


def _find_code(args: argparse.Namespace, rest: list[str]) -> None:
    """Find the code of ``eval``, which argparse does not behind NODE and an option."""
    if args.code is None and rest and (rest[0] == "-" or not rest[0].startswith("-")):
        args.code = rest.pop(0)
    if (args.code is None) == (args.file is None):
        args.parser.error("give either CODE (- reads standard input) or --file FILE")


async def _run(args: argparse.Namespace, leave: Callable[[int], None]) -> int:
    """Run the command that ``args`` hold. What comes after it is bounded by ``leave``."""
    search_path.restore()
    command: Callable[[argparse.Namespace], Awaitable[int]] = args.run
    code = 130
    try:
        code = await command(args)
    except _TOLD as error:
        _complain(error)
        code = 1
    finally:
        leave(code)
    return code


@contextlib.contextmanager
def _leaving(args: argparse.Namespace) -> Iterator[Callable[[int], None]]:
    """Gives what ends the process, `LEAVE` from then on, if this is not left until then.

    It does nothing but for the commands that ask another node something and end.
    """
    timers: list[threading.Timer] = []

    def leave(code: int) -> None:
        if args.asks:
            timers.append(threading.Timer(LEAVE, os._exit, (code,)))
            timers[-1].daemon = True
            timers[-1].start()

    try:
        yield leave
    finally:
        for timer in timers:
            timer.cancel()


# --- what they print ----------------------------------------------------------------------------


def _say(*lines: str) -> None:
    """Print ``lines``, at once. A reader that has gone wants no more: that is no failure."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        for line in lines:
            sys.stdout.write(_encodable(line, sys.stdout) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise CommandError(f"cannot write to standard output: {error.strerror}") from None


def _complain(what: object) -> None:
    _to_stderr(f"snex-node: {what}\n")


def _to_stderr(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(_encodable(text, sys.stderr))
        sys.stderr.flush()
    except OSError:  # nobody is left to be told
        discard(sys.stderr)


def _encodable(text: str, stream: TextIO) -> str:
    """``text`` with what the stream cannot show written as Python would."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# --- what the commands do -----------------------------------------------------------------------


async def _start(args: argparse.Namespace) -> int:
    args.service = Service()  # before anything is started that would inherit what it was told
    undo = args.log.take_reports()
    try:
        with watcher.guard(max(0.0, GRACE - watcher.MARGIN)):
            return await _until_signal(_serve(args))
    finally:
        undo()


async def _serve(args: argparse.Namespace) -> None:
    options = serde.merge_options(_pairs(args.encoding))
    name = full_name(args.name, args.sname)
    args.log.setFormatter(formats.formatter(args.log_format, name))
    _check_bounds(args)
    cookie = find_cookie(args.cookie_file)
    script = None if args.init_script is None else _read_script(Path(args.init_script))
    _empty_standard_input()
    fronts: list[Front] = []

    def resolve(module: str, function: str) -> Callable[..., object]:
        """Find what other nodes call here; of a front, what a worker calls."""
        return fronts[0].resolve(module, function) if fronts else import_function(module, function)

    if args.metrics is not None:
        metrics.check()
    node = Node(
        name,
        cookie=cookie,
        listen=args.listen or default_listen(name),
        epmd=args.epmd,
        net_ticktime=args.net_ticktime,
        max_frame=args.max_frame,
        decoder=serde.decoder(options),
        encoder=serde.encoder,
        resolver=resolve,
    )
    async with node:
        _tell_address(node)
        if args.workers is not None:
            fronts.append(
                Front(
                    node,
                    name=args.register_as,
                    max_queue=args.max_queue,
                    queue_timeout=args.queue_timeout,
                    max_requests=args.max_requests,
                )
            )
            await _serve_workers(fronts[0], cookie, script, args)
            return
        server = Server(node, name=args.register_as, options=options, **_execution(args))
        if script is not None:
            await _init(server, script, args.init_script, args.init_script_timeout)
        async with _metrics(args, partial(_info_of, server)):
            await _serve_until_ended(node, server.wait_ended(), args)


async def _info_of(server: Server) -> Mapping[Any, Any]:
    return server.info()


@contextlib.asynccontextmanager
async def _metrics(args: argparse.Namespace, gather: metrics.Gather) -> AsyncIterator[None]:
    """Serve metrics where that is asked for."""
    if args.metrics is None:
        yield
        return
    host, port = args.metrics
    exporter = metrics.Exporter(host, port, gather)
    try:
        yield
    finally:
        await exporter.close()


async def _serve_until_ended(
    node: Node, ended: Coroutine[object, object, object], args: argparse.Namespace
) -> None:
    for peer in args.connect:
        node.keep_connected(peer)
    _say(f"ready {node.name} {node.port}")
    args.service.ready(f"{node.name} at port {node.port}")
    try:
        reason = await ended
    finally:
        args.service.stopping()
        _log.info("%s stops", node.name)
    raise CommandError(f"{node.name} ends: an exit signal ended its runtime ({reason})")


async def _serve_workers(
    front: Front, cookie: str, script: str | None, args: argparse.Namespace
) -> None:
    """Be the front of workers, until something ends that."""
    node = front.owner
    crew = Crew(
        front,
        args.workers,
        _worker_configuration(node, cookie, script, args),
        arguments=() if args.loop == "asyncio" else ("--loop", args.loop),
        restarts=args.max_restarts,
    )
    try:
        await crew.start()
        await _serve_with(crew, front, args)
    except ScriptFailedError as error:
        raise CommandError(f"the init script {args.init_script} failed: {error}") from None
    except WorkerStartError as error:
        raise CommandError(f"a worker did not start: {error}") from None
    finally:
        await crew.stop()


async def _serve_with(crew: Crew, front: Front, args: argparse.Namespace) -> None:
    """Serve until something ends that, or too many workers have ended."""
    node = front.owner
    async with _metrics(args, crew.info):
        serving = tasks.start(_serve_until_ended(node, front.wait_ended(), args))
        try:
            waiting: list[asyncio.Future[Any]] = [serving, crew.failed]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
        if crew.failed.done():
            raise CommandError(f"{node.name} ends: {crew.failed.result()}")
        await serving


def _worker_configuration(
    node: Node, cookie: str, script: str | None, args: argparse.Namespace
) -> dict[str, object]:
    configuration: dict[str, object] = {
        "cookie": cookie,
        "epmd": "auto" if args.epmd == "embedded" else args.epmd,
        "encoding_opts": _pairs(args.encoding),
        "register_as": args.register_as,
        "script": None if script is None else (script, args.init_script),
        "script_timeout": math.ceil(args.init_script_timeout * 1000),
        "listen": None if args.listen is None else args.listen[0],
        "net_ticktime": args.net_ticktime,
        "max_frame": args.max_frame,
        "log_level": args.log_level,
        "log_format": args.log_format,
    }
    for name in (*BOUNDS, "executor", "threads", "max_queue"):
        if getattr(args, name) is not None:
            configuration[name] = getattr(args, name)
    for name in ("queue_timeout", "max_time", "slow"):
        if getattr(args, name) is not None:
            configuration[name] = math.ceil(getattr(args, name) * 1000)
    return configuration


def _check_bounds(args: argparse.Namespace) -> None:
    """Raise `CommandError` for a bound that ends a worker where there are none."""
    for name in (*BOUNDS, "max_requests"):
        if args.workers is None and getattr(args, name) is not None:
            raise CommandError(
                f"--{name.replace('_', '-')} is for the processes of workers: add --workers N"
            )


def _execution(args: argparse.Namespace) -> dict[str, Any]:
    """Where requests run and for how long, as `Server` takes it."""
    return {
        "executor": args.executor,
        "threads": args.threads,
        "max_queue": args.max_queue,
        "queue_timeout": args.queue_timeout,
        "max_time": args.max_time,
        "slow": args.slow,
    }


def _tell_address(node: Node) -> None:
    """Log where the node listens, as a warning where more than this machine may reach it."""
    assert node.address is not None
    host, port = node.address
    if is_loopback(host):
        _log.info("%s listens on %s", node.name, _shown(host, port))
        return
    _log.warning(
        "%s listens on %s: whoever can reach that and knows the cookie can run code here, and what "
        "is sent is not encrypted (TLS is not supported yet). Between machines, use a network that "
        "you trust or a tunnel",
        node.name,
        _shown(host, port),
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _empty_standard_input() -> None:
    """Evaluated code that reads finds the end of its input, and not the terminal of whoever
    started the node, which would keep everybody waiting."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing != 0:  # it is where there was no standard input at all
        os.dup2(nothing, 0)
        os.close(nothing)


async def _init(server: Server, source: str, path: str, timeout: float | None) -> None:
    failure = await server.init(source, path, timeout=timeout)
    if failure is not None:
        raise CommandError(f"the init script {path} failed: {failure.describe()}")


def _read_script(path: Path) -> str:
    try:
        return read_script(path)
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise CommandError(f"cannot read the init script {path}: {error}") from error


async def _eval(args: argparse.Namespace) -> int:
    code = _code(args)
    variables = dict(_variable(text) for text in args.var)
    # The node's own limit: it stops what nobody waits for any more, and the other callers get on.
    options = [(Atom("timeout"), math.ceil(args.timeout * 1000))]
    async with _client(args) as node:
        await _connect(node, args)
        request = (Atom("eval"), code, variables, options)
        answer = await _ask(node, (args.register_as, args.node), request, args.timeout)
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] == "ok":
        _print_value(answer[1], args)
        return 0
    _print_failure(answer, args)
    return 1


async def _connect(node: Node, args: argparse.Namespace) -> None:
    """Connect to the node of ``args`` within its timeout. Raises `ConnectError`, `CommandError`."""
    connecting = asyncio.ensure_future(node.connect(args.node))
    try:
        done, _ = await asyncio.wait([connecting], timeout=args.timeout)
    finally:
        connecting.cancel()
    if not done:
        raise CommandError(f"{args.node} did not answer within {args.timeout:g} s")
    await connecting


async def _ask(node: Node, to: tuple[str, str], request: object, timeout: float) -> object:
    try:
        return await node.call(to, request, timeout=timeout + MARGIN)
    except CallTimeoutError:
        raise CommandError(
            f"{to[1]} did not answer within {timeout:g} s, nor did it say that the code was "
            "stopped: that may still run, in C code that keeps the interpreter lock"
        ) from None
    except ProcessExitError as error:
        if error.reason == "noproc":
            raise CommandError(
                f"nothing is registered as {to[0]} on {to[1]}: is it a snex-node? "
                "(--register-as says under which name)"
            ) from None
        raise CommandError(str(error)) from None
    except (NodeError, EncodeError) as error:
        raise CommandError(str(error)) from None


def _print_value(value: object, args: argparse.Namespace) -> None:
    if value is None and not _returns(args.source):
        _complain("nothing was returned: say what you want to see, as in 'return 6 * 7'")
    else:
        _say(_written(value))


def _written(value: object) -> str:
    """The whole value as Python writes it; what Python cannot write is cut."""
    try:
        return repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer of too many digits
        return short(value, MAX_WRITTEN)


def _returns(source: str) -> bool:
    """Whether code has a ``return`` of its own, outside of the functions that it defines."""
    try:
        stack: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of another Python's grammar
        return re.search(r"\breturn\b", source) is not None
    while stack:
        part = stack.pop()
        if isinstance(part, ast.Return):
            return True
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack.extend(ast.iter_child_nodes(part))
    return False


def _code(args: argparse.Namespace) -> object:
    """What is to be evaluated, as a request has it; ``args.source`` is its text from then on.

    Raises `CommandError`.
    """
    if args.file is None and args.code != "-":
        args.source = args.code
        return args.code
    if args.file in (None, "-"):
        file, args.source = "<stdin>", _read_standard_input()
    else:
        file, args.source = args.file, _read_file(Path(args.file))
    code = {"__struct__": Atom("Elixir.Snex.Code"), "src": args.source, "file": file, "line": 0}
    return {Atom(name): value for name, value in code.items()}


def _read_standard_input() -> str:
    if sys.stdin is None:
        raise CommandError("there is no standard input to read the code from")
    return _source(sys.stdin.buffer.read(), "standard input")


def _source(data: bytes, where: str) -> str:
    """The text of code, in the encoding that it says, as Python has it. Raises `CommandError`."""
    try:
        return decode_script(data)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise CommandError(f"{where} is no Python code: {error}") from None


def _read_file(path: Path) -> str:
    try:
        return _source(path.read_bytes(), str(path))
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None


def _print_failure(answer: object, args: argparse.Namespace) -> None:
    error = answer[1] if isinstance(answer, tuple) and len(answer) == 2 else answer
    if not isinstance(error, dict):
        _complain(f"unexpected answer: {short(answer)}")
        return
    traceback = error.get("traceback")
    if isinstance(traceback, list) and traceback:
        _to_stderr("".join(map(_text, traceback)))
    elif (error.get("code"), error.get("reason")) == ("cancelled", "timeout"):
        _complain(
            f"{args.node} did not answer within {args.timeout:g} s: the code was stopped there "
            "(--timeout gives it more time)"
        )
    else:
        reason = error.get("reason")
        told = _text(reason) if isinstance(reason, str) else inspect(reason, MAX_WRITTEN)
        _complain(f"{_text(error.get('code'))}: {told}")


def _text(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else short(value)


# --- what a node tells of itself ------------------------------------------------------------------


async def _info(args: argparse.Namespace) -> int:
    async with _client(args) as node:
        await _connect(node, args)
        look = await _look(node, args)
    _say(*_shown_look(look, args))
    return 0


async def _top(args: argparse.Namespace) -> int:
    return await _until_signal(_keep_looking(args))


async def _keep_looking(args: argparse.Namespace) -> None:
    """Show what there is, again and again; the first look has to succeed."""
    loop = asyncio.get_running_loop()
    async with _client(args) as node:
        await _connect(node, args)
        last: overview.Look | None = None
        at = sized_at = -math.inf
        for number in itertools.count(1):
            began = loop.time()
            try:
                if last is not None:
                    await _connect(node, args)
                sized = last is None or began - sized_at >= SIZED_EVERY
                look = await _look(node, args, sized=sized)
            except (CommandError, NodeError, ValueError) as error:
                if last is None:
                    raise
                _complain(error)
            else:
                if last is not None:
                    kept = look.environments if sized else last.environments
                    look = overview.Look(look.info, kept, began - at, last.info)
                last, at, sized_at = look, began, began if sized else sized_at
                _show_again(look, args, number)
            if number == args.count:
                return
            await asyncio.sleep(args.interval - min(args.interval, loop.time() - began))


async def _look(node: Node, args: argparse.Namespace, *, sized: bool = True) -> overview.Look:
    """Ask a node what there is, and if ``sized`` how large its environments are."""
    to = args.register_as, args.node
    answer = await _ask(node, to, Atom("info"), args.timeout)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
        raise CommandError(f"unexpected answer of {args.node}: {short(answer)}")
    if answer[0] != "ok":
        raise CommandError(f"{args.node} does not tell: {_text(answer[1].get('reason'))}")
    environments = None
    if sized:
        request = Atom("info"), Atom("environments")
        sizes = await _ask(node, to, request, args.timeout)
        if isinstance(sizes, tuple) and sizes[0] == "ok":  # older nodes do not know that
            environments = overview.readable(sizes[1])
    return overview.Look(overview.readable(answer[1]), environments)


def _shown_look(look: overview.Look, args: argparse.Namespace) -> list[str]:
    if args.json:
        indent = None if args.run is _top else 2
        return [json.dumps(overview.as_json(look), indent=indent)]
    if not _on_terminal():
        return overview.plain(look)
    width = shutil.get_terminal_size().columns
    return overview.colored(look, width) or overview.plain(look, width)


def _show_again(look: overview.Look, args: argparse.Namespace, number: int) -> None:
    lines = _shown_look(look, args)
    if args.json:
        _say(*lines)
    elif _on_terminal():
        lines = lines[: shutil.get_terminal_size().lines - 1]
        _say("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    else:
        _say(*([""] if number > 1 else []), *lines)


def _on_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


async def _doctor(args: argparse.Namespace) -> int:
    patient = doctor.Patient(
        args.node, partial(_client, args), args.cookie_file, args.register_as, args.timeout
    )
    found = []
    async for check in doctor.examine(patient):
        found.append(check)
        if not args.json:
            _say(f"{check.state:<8} {check.name}: {check.text}")
            if check.remedy is not None and check.state != "ok":
                _say(f"{'':<8} -> {check.remedy}")
    healthy = all(check.state != "failed" for check in found)
    if args.json:
        checks = [dict(zip(doctor.FIELDS, check, strict=True)) for check in found]
        _say(json.dumps({"ok": healthy, "checks": checks}, indent=2))
    return 0 if healthy else 1


async def _ping(args: argparse.Namespace) -> int:
    began = asyncio.get_running_loop().time()
    why = f"{args.node} did not answer within {args.timeout:g} s"
    async with _client(args) as node:
        try:
            await _connect(node, args)
            left = began + args.timeout - asyncio.get_running_loop().time()
            if await node.ping(args.node, timeout=max(0.0, left)):
                _say("pong")
                return 0
        except (CommandError, NodeError, ValueError) as error:
            why = str(error)
        _say("pang")
        _complain(why)
    return 1


async def _names(args: argparse.Namespace) -> int:
    try:
        names = await epmd.names(args.host)
    except epmd.EpmdError as error:
        raise CommandError(str(error)) from None
    _say(*(f"{name} at port {port}" for name, port in names))
    return 0


async def _epmd(args: argparse.Namespace) -> int:
    return await _until_signal(_serve_epmd(*(args.listen or (None, None))))


async def _serve_epmd(host: str | None, port: int | None) -> None:
    try:
        with epmd.EpmdServer(host, port) as server:
            _say(" ".join(["epmd", *(f"{host}:{port}" for host, port in server.addresses)]))
            await _forever()
    except epmd.EpmdError as error:
        raise CommandError(str(error)) from None


async def _demo(args: argparse.Namespace) -> int:
    run: Callable[[], Awaitable[int]] = import_module(DEMO).run
    return await run()


def _client(args: argparse.Namespace) -> AbstractAsyncContextManager[Node]:
    """A node for one command: it connects and is not connected to, so it needs no epmd."""
    host = args.node.partition("@")[2]
    own_host = "127.0.0.1" if "." in host else _short_host()
    return Node(
        f"snex-cli-{secrets.token_hex(6)}@{own_host}",
        cookie=find_cookie(args.cookie_file),
        listen=None,
        epmd="none",
        decoder=serde.decoder(),
        encoder=serde.encoder,
    )


async def _until_signal(work: Coroutine[object, object, None]) -> int:
    """Run ``work``; SIGTERM, Ctrl-C and SIGHUP cancel it, wherever it is: that is no failure.

    The handlers are Python's own, not the loop's, because those run only when the loop has a
    turn: code that blocks it has `GRACE` seconds, or until the second signal.
    """
    loop = asyncio.get_running_loop()
    task = tasks.start(work)
    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        watchdog = threading.Timer(GRACE, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        loop.call_soon_threadsafe(task.cancel)

    before = {number: forks.set_handler(number, on_signal) for number in _ending_signals()}
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise
    finally:
        if not stopping:  # else what is left of the end is guarded too
            for number, handler in before.items():
                forks.reset_handler(number, handler)
    return 0


def _ending_signals() -> list[signal.Signals]:
    """Those that ask a command to end. ``nohup`` has SIGHUP ignored: so it stays."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return numbers


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


# --- names and addresses ------------------------------------------------------------------------


def full_name(long: str | None, short: str | None) -> str:
    """The node's full name from ``--name`` or ``--sname``. Raises `CommandError`."""
    if short is not None:
        alive, at, host = short.partition("@")
        host = host if at else _short_host()
        if "." in host:
            raise CommandError(f"--sname takes a host without dots, not {host}: use --name")
        return f"{alive}@{host}"
    alive, at, host = (long or DEFAULT_NAME).partition("@")
    host = host if at else "127.0.0.1"
    if "." not in host:
        raise CommandError(
            f"--name takes a host with a dot, not {host or 'none'}: an address such as 127.0.0.1 "
            "will do; for hosts without a dot use --sname"
        )
    return f"{alive}@{host}"


def _short_host() -> str:
    return socket.gethostname().partition(".")[0]


def default_listen(name: str) -> tuple[str, int]:
    """Where to listen for a node that was not told: the loopback address its host stands for.

    Raises `CommandError` when the host stands for none, because nobody would find the node on
    loopback, and listening elsewhere is for the user to decide.
    """
    host = name.partition("@")[2]
    try:
        addresses = [address.host for address in resolve(host)]
    except OSError as error:
        raise CommandError(
            f"the host {host} of {name} does not resolve ({error.strerror or error}): other nodes "
            "could not find it. Use an address, as in py@127.0.0.1"
        ) from None
    for address in addresses:
        if is_loopback(address):
            return address, 0
    raise CommandError(
        f"other nodes look for {name} at {addresses[0]}, and without --listen the node is on "
        f"loopback only: add --listen {addresses[0]}:0, or take a name such as py@127.0.0.1"
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (port 0 takes a free one)")
    return host.strip("[]"), int(port)


def _metrics_address(text: str) -> tuple[str, int]:
    """As `_address`; a port alone is on loopback."""
    host, port = _address(text if ":" in text else f":{text}")
    return host or "127.0.0.1", port


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text} is no number of seconds from 0.001 to {LONGEST:.0f}"
        )
    return seconds


def _some_milliseconds(text: str) -> float:
    """Milliseconds, at least one, as seconds."""
    _count(text)
    return _milliseconds(text)


def _milliseconds(text: str) -> float:
    """Milliseconds, as seconds."""
    number = _number(text)
    if number > LONGEST * 1000:
        raise argparse.ArgumentTypeError(
            f"{text} is no number of milliseconds up to {LONGEST * 1000:.0f}"
        )
    return number / 1000


def _count(text: str) -> int:
    number = _number(text)
    if not number:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number, 0 or more")
    return int(text)


def _variable(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--var takes name=JSON, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise CommandError(
            f"--var {name}: {value!r} is not JSON ({error}). Texts need their quotes: "
            f"""--var '{name}="text"'"""
        ) from None


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals:
            raise CommandError(f"--encoding takes option=value, such as binary_as=bytes: {name!r}")
    return [(name, value) for name, _, value in pairs]


# --- arguments ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snex-node",
        description="A Python process as a hidden Erlang node: any Elixir or Erlang process of "
        "the cluster can evaluate Python on it.",
        epilog="The cookie comes from --cookie-file, the environment variable SNEX_COOKIE, or "
        "~/.erlang.cookie (made if missing), in this order; never from an argument, which other "
        "users of the machine could read.",
    )
    parser.add_argument("--version", action="version", version=f"snex-node {__version__}")
    parser.set_defaults(
        run=None, loop="asyncio", log_level="warning", log_format="text", asks=False, needs=()
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_start(commands)
    _add_eval(commands)
    ping = _add(commands, "ping", _ping, "say whether a node answers: pong (0) or not (1)")
    ping.add_argument("node", metavar="NODE", help="full name of the node")
    _add_client(ping)
    _add_looks(commands)
    names = _add(commands, "names", _names, "list the nodes that the epmd of a host knows")
    names.add_argument("host", metavar="HOST", nargs="?", default="127.0.0.1", help="%(default)s")
    names.set_defaults(asks=True, loop="asyncio")
    server = _add(commands, "epmd", _epmd, "run epmd, for machines without Erlang, until stopped")
    server.add_argument(
        "--listen",
        type=_address,
        metavar="HOST:PORT",
        help="default: loopback (or ERL_EPMD_ADDRESS), port 4369 (or ERL_EPMD_PORT)",
    )
    shown = _add(
        commands, "demo", _demo, "start a node, evaluate on it, say what happened, and end"
    )
    shown.set_defaults(needs=(DEMO,))
    under_beam = _add(
        commands,
        "child",
        child.run,
        "run a node for the BEAM that started this process (the Elixir client does)",
    )
    under_beam.add_argument("--loop", choices=loops.CHOICES, default="asyncio", help="%(default)s")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], Awaitable[int]],
    text: str,
) -> argparse.ArgumentParser:
    # Without abbreviations: `--cookie SECRET` must not be taken for --cookie-file, and shown.
    parser = commands.add_parser(
        name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what is logged to standard error (default: %(default)s)",
    )
    return parser


def _add_start(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    start = _add(
        commands,
        "start",
        _start,
        "start a node; it prints 'ready NAME PORT' when it can be called, and runs until SIGTERM, "
        "SIGHUP or Ctrl-C",
    )
    _add_place(start)
    _add_runtime(start)
    _add_execution(start)
    _add_limits(start)
    _add_workers(start)
    _add_logs(start)
    start.add_argument(
        "--loop",
        choices=loops.CHOICES,
        default="asyncio",
        help="event loop; auto is uvloop where it is installed (default: %(default)s)",
    )


def _add_place(start: argparse.ArgumentParser) -> None:
    """Which node it is, and how others find it."""
    names = start.add_mutually_exclusive_group()
    names.add_argument(
        "--name",
        metavar="NAME[@HOST]",
        help=f"long name; without a host it is 127.0.0.1 (default: {DEFAULT_NAME})",
    )
    names.add_argument(
        "--sname",
        metavar="NAME[@HOST]",
        help="short name, a host without dots; without a host it is this machine",
    )
    _add_cookie(start)
    start.add_argument(
        "--listen",
        type=_address,
        metavar="HOST:PORT",
        help="where other nodes connect (default: the loopback address of the name's host, and a "
        "free port)",
    )
    start.add_argument(
        "--connect",
        metavar="NODE",
        action="append",
        default=[],
        help="connect to this node, again whenever the connection is lost (repeatable)",
    )
    start.add_argument(
        "--epmd",
        choices=("auto", "external", "embedded", "none"),
        default="auto",
        help="register with the epmd that runs or else start one (auto), only with one that runs, "
        "only with one of our own, or not at all (default: %(default)s)",
    )


def _add_runtime(start: argparse.ArgumentParser) -> None:
    """What evaluates."""
    start.add_argument("--init-script", metavar="FILE", help="Python code to run before all else")
    start.add_argument(
        "--init-script-timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="time the init script may take (default: %(default)s)",
    )
    start.add_argument(
        "--register-as",
        default="snex",
        metavar="NAME",
        help="name of the process that takes requests (default: %(default)s)",
    )
    start.add_argument(
        "--encoding",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="how terms become objects: binary_as=str|bytes|bytearray, set_as=set|frozenset, "
        "atom_as=atom|distinct_atom, tensor_as=ndarray|memoryview|term, structs_as=dict|native "
        "(repeatable)",
    )


def _add_execution(start: argparse.ArgumentParser) -> None:
    """Where requests run, and for how long."""
    start.add_argument(
        "--executor",
        choices=("loop", "thread"),
        default="loop",
        help="where requests run that do not say: on the event loop, one at a time, or in a thread "
        "each (default: %(default)s)",
    )
    start.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help=f"how many threads run requests at most (default: {default_threads()} here)",
    )
    start.add_argument(
        "--max-queue",
        type=_number,
        metavar="N",
        help="how many requests may wait for a thread, or await on the event loop; one more is "
        "answered `overloaded` (default: any number)",
    )
    start.add_argument(
        "--queue-timeout",
        type=_milliseconds,
        metavar="MS",
        help="time that a request may wait for a thread (default: any)",
    )
    start.add_argument(
        "--max-time",
        type=_milliseconds,
        metavar="MS",
        help="time limit of every request that brings none (default: none)",
    )


def _add_limits(start: argparse.ArgumentParser) -> None:
    """What it takes from others."""
    start.add_argument(
        "--net-ticktime",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="silence after which a peer is lost, as in OTP (default: %(default)s)",
    )
    start.add_argument(
        "--max-frame",
        type=int,
        default=128 * 1024 * 1024,
        metavar="BYTES",
        help="longest frame accepted; a longer one closes its connection (default: %(default)s)",
    )


def _add_logs(start: argparse.ArgumentParser) -> None:
    """What it tells."""
    start.epilog = (
        "Loggers: snex_node.* tell of connections and epmd, snex_runtime.* of the runtime; "
        f"{journal.LOGGER} has a line for each request that failed (info) or was slow (warning): "
        "its kind, its caller and the place in the code, no values."
    )
    start.add_argument(
        "--log-format",
        choices=formats.CHOICES,
        default="text",
        help="lines of the log as text, or each as a JSON object with time, level, logger, "
        "message, node, pid and exception (default: %(default)s)",
    )
    start.add_argument(
        "--metrics",
        type=_metrics_address,
        metavar="[HOST:]PORT",
        help="serve metrics for Prometheus there, for whoever can reach it; without a host on "
        "loopback (needs the extra `metrics`)",
    )
    start.add_argument(
        "--slow",
        type=_some_milliseconds,
        metavar="MS",
        help="log a warning for each request that takes so long or longer (default: none)",
    )


def _add_workers(start: argparse.ArgumentParser) -> None:
    """Processes that evaluate in the place of this one, and what they may have."""
    start.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="evaluate in N processes, which are nodes of their own; this one sends requests on, "
        "and starts others in the place of those that end",
    )
    start.add_argument(
        "--max-restarts",
        type=_rate,
        default=RESTARTS,
        metavar="N/SECONDS",
        help="workers that may end by themselves in that time; one more ends the node "
        f"(default: {RESTARTS[0]}/{RESTARTS[1]:.0f})",
    )
    start.add_argument(
        "--max-requests",
        type=_positive,
        metavar="N",
        help="requests after which a worker is replaced, when it has nothing to do and no "
        "environments",
    )
    start.add_argument(
        "--kill-after",
        type=_positive,
        metavar="MS",
        help="time beyond the time limit of a request after which its worker is killed, whatever "
        "runs there",
    )
    start.add_argument(
        "--max-memory",
        type=_positive,
        metavar="BYTES",
        help="resident memory of a worker; one with more is killed",
    )
    for name, what in (
        ("as", "bytes of address space of a worker (RLIMIT_AS): MemoryError beyond it"),
        ("cpu", "seconds of processor time of a worker (RLIMIT_CPU): it ends then"),
        ("nofile", "open files of a worker (RLIMIT_NOFILE)"),
    ):
        start.add_argument(f"--rlimit-{name}", type=_positive, metavar="N", help=what)
    start.add_argument(
        "--cgroup", metavar="DIRECTORY", help="control group (cgroup v2) that workers join"
    )


BOUNDS: Final = (
    *("kill_after", "max_memory", "rlimit_as", "rlimit_cpu", "rlimit_nofile", "cgroup"),
)
"""Options of `start` that a worker is told as they are."""


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 and more")
    return int(text)


def _rate(text: str) -> tuple[int, float]:
    number, slash, seconds = text.partition("/")
    if not slash or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not N/SECONDS, such as 10/60")
    return int(number), _seconds(seconds)


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _add(
        commands, "eval", _eval, "evaluate Python on a node, and print the value it returns"
    )
    evaluate.add_argument("node", metavar="NODE", help="full name of the node")
    evaluate.set_defaults(parser=evaluate)
    evaluate.add_argument(
        "code", metavar="CODE", nargs="?", help="such as 'return 6 * x'; - for standard input"
    )
    evaluate.add_argument("--file", metavar="FILE", help="file with the code; - for standard input")
    evaluate.add_argument(
        "--var",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a variable for the code (repeatable)",
    )
    evaluate.add_argument("--register-as", default="snex", metavar="NAME", help="as given to start")
    _add_client(evaluate)


def _add_looks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    info = _add(commands, "info", _info, "show what runs on a node, what it holds and how it is")
    top = _add(commands, "top", _top, "show that again and again, until Ctrl-C")
    for parser in (info, top):
        parser.add_argument("node", metavar="NODE", help="full name of the node")
        parser.add_argument("--json", action="store_true", help="as JSON (of top: a line each)")
        parser.add_argument(
            "--register-as", default="snex", metavar="NAME", help="as given to start"
        )
        _add_client(parser)
    examined = _add(
        commands,
        "doctor",
        _doctor,
        "say what nodes need that is there or not, and with NODE how far one gets on the way to "
        "it; 1 when something failed",
    )
    examined.add_argument("node", metavar="NODE", nargs="?", help="full name of a node")
    examined.add_argument("--json", action="store_true", help="as JSON")
    examined.add_argument("--register-as", default="snex", metavar="NAME", help="as given to start")
    _add_client(examined)
    top.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="time between two looks (default: %(default)s); the sizes of environments, which may "
        f"hold up the node for 0.05 s, are asked for every {SIZED_EVERY:.0f} s",
    )
    top.add_argument("--count", type=_count, metavar="N", help="end after N looks (default: never)")


def _add_cookie(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cookie-file", metavar="FILE", help="file with the cookie (see snex-node --help)"
    )


def _add_client(parser: argparse.ArgumentParser) -> None:
    _add_cookie(parser)
    parser.set_defaults(asks=True, loop="asyncio")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for an answer; code that runs longer is stopped "
        "(default: %(default)s)",
    )

"""What a process is told on its standard input by a BEAM or a front that has started it."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from snex_node.wire.etf import DecodeError, Decoder, Encoder
from snex_node.wire.terms import Atom, Pid
from snex_runtime import configuration, serde
from snex_runtime.configuration import Configuration, ForWorker
from snex_runtime.forwarding import Ledger
from tests.support.forked import forked

NAMED = {"name": "py@127.0.0.1", "cookie": "secret"}


def framed(term: object, version: bytes = b"\x83") -> bytes:
    data = version + Encoder().encode(term)
    return struct.pack(">I", len(data)) + data


EXECUTION = ("threads", "max_queue", "queue_timeout", "max_time", "kill_after", "slow")
"""Numbers that say where requests run and for how long."""


def term_of(**more: object) -> dict[Atom, object]:
    return {Atom(name): value for name, value in {**NAMED, **more}.items()}


def read(data: bytes) -> Configuration:
    """What is made of these bytes, behind which nothing comes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return Configuration.read(file.fileno())


class TestRead:
    def test_a_map_by_atoms(self) -> None:
        told = read(framed(term_of()))
        assert (told.name, told.cookie) == ("py@127.0.0.1", "secret")
        assert (told.epmd, told.beam, told.interpreter, told.worker) == ("auto", None, None, None)
        assert told.encoding == serde.DEFAULTS
        assert told.max_memory == 0
        assert told.execution == {"executor": "loop", **dict.fromkeys(EXECUTION)}

    def test_all_that_a_beam_tells(self) -> None:
        pid = Pid("app@host", 1, 2, 3)
        told = read(
            framed(
                term_of(
                    epmd=Atom("none"),
                    beam="app@host",
                    interpreter=pid,
                    encoding_opts=[(Atom("binary_as"), Atom("bytes"))],
                    max_memory=2**30,
                    kill_after=1500,
                    rlimit_nofile=64,
                )
            )
        )
        assert (told.epmd, told.beam, told.interpreter) == ("none", "app@host", pid)
        assert told.encoding == serde.merge_options([("binary_as", "bytes")])
        assert told.max_memory == 2**30
        assert told.execution["kill_after"] == 1.5
        assert told.limits["rlimit_nofile"] == 64

    @pytest.mark.parametrize(
        ("structs", "encoder"),
        [
            (None, serde.encoder),
            ([], serde.encoder_without_duration),
            ([{"__struct__": Atom("Elixir.MapSet"), "map": {}}], serde.encoder_without_duration),
            ([{"__struct__": Atom("Elixir.MapSet"), "map": {}, "version": 2}], serde.encoder_v2),
            (
                [
                    {"__struct__": Atom("Elixir.MapSet"), "map": {}},
                    {"__struct__": Atom("Elixir.Duration"), "day": 0},
                ],
                serde.encoder,
            ),
        ],
        ids=["not told", "none", "1.16", "1.14", "1.17"],
    )
    def test_which_structs_the_beam_has(self, structs: Any, encoder: Encoder) -> None:
        assert read(framed(term_of(structs=structs))).encoder is encoder
        assert read(framed(term_of())).encoder is serde.encoder

    def test_it_may_come_in_pieces(self) -> None:
        reader, writer = os.pipe()

        def tell() -> None:
            for byte in framed(term_of()) + b"stop\n":
                os.write(writer, bytes([byte]))

        assert forked(tell).status == 0
        assert Configuration.read(reader).name == "py@127.0.0.1"
        assert os.read(reader, 100) == b"stop\n"  # what comes behind is not its own
        os.close(reader)
        os.close(writer)

    @pytest.mark.parametrize("length", [0, 3, 4, 5, 20])
    def test_it_is_cut_off(self, length: int) -> None:
        with pytest.raises(EOFError, match="ended before the configuration was complete"):
            read(framed(term_of())[:length])

    @pytest.mark.parametrize("missing", ["name", "cookie"])
    def test_something_is_missing(self, missing: str) -> None:
        term = term_of()
        del term[Atom(missing)]
        with pytest.raises(KeyError, match=missing):
            read(framed(term))

    @pytest.mark.parametrize(("term", "kind"), [([], "list"), (5, "int"), ((1, 2), "tuple")])
    def test_it_is_no_map(self, term: object, kind: str) -> None:
        with pytest.raises(ValueError, match=f"^the configuration is a map, not {kind}$"):
            read(framed(term))

    def test_it_is_no_term(self) -> None:
        with pytest.raises(ValueError, match="a map"):
            read(framed(term_of(), version=b"\x82"))
        assert issubclass(DecodeError, ValueError)
        with pytest.raises(DecodeError):
            read(struct.pack(">I", 3) + b"\x83??")

    def test_somebody_types(self) -> None:
        with pytest.raises(ValueError, match="by hand use `snex-node start`"):
            read(b"help\n")

    def test_its_length_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = framed(term_of())
        monkeypatch.setattr(configuration, "_MAX_CONFIGURATION", len(data) - 4)
        assert read(data).name == "py@127.0.0.1"
        monkeypatch.setattr(configuration, "_MAX_CONFIGURATION", len(data) - 5)
        with pytest.raises(ValueError, match=f"the configuration has {len(data) - 4} bytes"):
            read(data)

    def test_where_requests_run_and_for_how_long(self) -> None:
        numbers = {"threads": 3, "max_queue": 4, "queue_timeout": 500, "max_time": 0}
        times = {"kill_after": 250, "slow": 20}
        told = read(framed(term_of(**numbers, **times, executor=Atom("thread"))))
        seconds = {"queue_timeout": 0.5, "max_time": 0.0, "kill_after": 0.25, "slow": 0.02}
        assert told.execution == {**numbers, **seconds, "executor": "thread"}

    def test_an_executor_that_is_none(self) -> None:
        with pytest.raises(ValueError, match=r"^executor is loop or thread"):
            read(framed(term_of(executor="x")))

    @pytest.mark.parametrize("name", [*EXECUTION, "max_memory"])
    @pytest.mark.parametrize("wrong", [-1, 1.5, True, "5", Atom("infinity"), 2**62])
    def test_numbers_that_are_none(self, name: str, wrong: object) -> None:
        with pytest.raises(ValueError, match=f"^{name} is a whole number of "):
            read(framed(term_of(**{name: wrong})))

    def test_no_threads_at_all(self) -> None:
        with pytest.raises(ValueError, match=r"^threads is a whole number of 32 bits from 1"):
            read(framed(term_of(threads=0)))

    def test_nothing_is_slow_at_once(self) -> None:
        with pytest.raises(ValueError, match=r"^slow is a whole number of 32 bits from 1"):
            read(framed(term_of(slow=0)))

    def test_encoding_options_that_are_none(self) -> None:
        with pytest.raises(ValueError, match="unknown encoding option"):
            read(framed(term_of(encoding_opts={Atom("x"): 1})))


class Files:
    """What a worker is given, and the other ends."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        self.told, report = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.truncate(Ledger.SIZE)
            self.ledger = Ledger(file.fileno())
            ledger = os.dup(file.fileno())
        # As they are given to a program: it may inherit them.
        self.numbers = {"line": theirs.detach(), "ledger": ledger, "report": report}
        for number in self.numbers.values():
            os.set_inheritable(number, True)

    def close(self) -> None:
        self.line.close()
        self.ledger.close()
        for number in (self.told, self.numbers["ledger"]):
            os.close(number)


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


BESIDES: dict[str, Any] = {
    "register_as": "snex",
    "script_timeout": 1500,
    "net_ticktime": 60.0,
    "max_frame": 1024,
    "log_level": "warning",
}


def for_worker(files: Files, **more: object) -> ForWorker:
    told = read(framed(term_of(**files.numbers, **BESIDES, **more)))
    assert told.worker is not None
    return told.worker


class TestForWorker:
    def test_what_it_is_told(self, files: Files) -> None:
        worker = for_worker(files, script=("x = 1", "init.py"), listen="0.0.0.0")
        assert (worker.register_as, worker.log_level) == ("snex", "warning")
        assert worker.log_format == "text"
        assert (worker.script, worker.script_timeout) == (("x = 1", "init.py"), 1.5)
        assert (worker.listen, worker.net_ticktime, worker.max_frame) == ("0.0.0.0", 60.0, 1024)
        self.end(worker)

    def test_what_may_be_missing(self, files: Files) -> None:
        worker = for_worker(files)
        assert (worker.script, worker.listen) == (None, None)
        self.end(worker)

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # what has no configuration ends
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("missing", BESIDES)
    def test_what_may_not(self, files: Files, missing: str) -> None:
        term = {**NAMED, **files.numbers, **BESIDES}
        del term[missing]
        with pytest.raises(KeyError, match=missing):
            Configuration(term)
        os.close(files.numbers["report"])

    def test_line_and_page_lead_to_the_front(self, files: Files) -> None:
        worker = for_worker(files)
        worker.line.sendall(b"hello")
        assert files.line.recv(10) == b"hello"
        worker.ledger.start(7)
        assert files.ledger.started == 7
        assert worker.ledger_file == files.numbers["ledger"]
        self.end(worker)

    def test_programs_that_it_runs_have_none_of_them(self, files: Files) -> None:
        worker = for_worker(files)
        numbers = files.numbers.values()
        assert [os.get_inheritable(number) for number in numbers] == [False] * 3
        self.end(worker)

    def test_forked_children_tell_nothing(self, files: Files) -> None:
        worker = for_worker(files)
        assert forked(lambda: worker.tell(Atom("ready"))).status == 0
        worker.tell(Atom("error"))
        assert os.read(files.told, 1000) == struct.pack(">I", 7) + b"w\5error"
        self.end(worker)

    def test_what_it_tells(self, files: Files) -> None:
        worker = for_worker(files)
        term = Atom("ready"), "py-1@127.0.0.1", Pid("py-1@127.0.0.1", 5, 0, 7)
        worker.tell(term)
        data = os.read(files.told, 1000)
        assert struct.unpack_from(">I", data)[0] == len(data) - 4
        assert Decoder(binary_as="str").decode(data[4:])[0] == term
        self.end(worker)

    def test_why_it_ends(self, files: Files) -> None:
        worker = for_worker(files)
        worker.fail(Atom("error"))
        assert os.read(files.told, 1000) == struct.pack(">I", 7) + b"w\5error"
        assert files.line.recv(1) == b""
        self.end(worker)

    def test_long_texts_too(self, files: Files) -> None:
        """More than a pipe has room for: the front reads while they are written."""
        worker = for_worker(files)
        text = "x" * 300_000
        writing = threading.Thread(target=worker.tell, args=((Atom("script"), text),))
        writing.start()
        got = bytearray()
        while len(got) < len(text):
            got += os.read(files.told, 65536)
        writing.join()
        assert Decoder(binary_as="str").decode(bytes(got[4:]))[0] == ("script", text)
        self.end(worker)

    @staticmethod
    def end(worker: ForWorker) -> None:
        worker.line.close()
        worker.ledger.close()
        worker._report.close()

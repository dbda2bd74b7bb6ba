"""Exit reasons that have no external form, or cannot be read."""

from __future__ import annotations

import pytest

from snex_node import Atom, DecodeError
from snex_node.processes.reasons import Undecodable, decode_reason, encode_reason
from snex_node.wire import etf


class TestReasons:
    def test_what_has_no_external_form_goes_as_text(self) -> None:
        assert etf.Decoder().decode(encode_reason(etf.Encoder(), (1, {2})))[0] == b"(1, {2})"

    def test_its_repr_may_fail_or_be_long(self) -> None:
        class Bad:
            def __repr__(self) -> str:
                raise RuntimeError

        text = etf.Decoder().decode(encode_reason(etf.Encoder(), Bad()))[0]
        assert text.startswith(b"<tests.test_reasons.TestReasons.test_its_repr_may_fail_or_be_long")
        text = etf.Decoder().decode(encode_reason(etf.Encoder(), {"x" * 10**6}))[0]
        assert len(text) < 1100


class TestReading:
    def test_as_it_was_sent(self) -> None:
        data = b"xx" + etf.Encoder().encode((Atom("boom"), 1))
        assert decode_reason(etf.Decoder(), data, 2, "peer@host") == ("boom", 1)

    def test_what_cannot_be_decoded_counts(self, caplog: pytest.LogCaptureFixture) -> None:
        reason = decode_reason(etf.Decoder(), b"\xff", 0, "peer@host")
        assert isinstance(reason, Undecodable)
        assert isinstance(reason.error, DecodeError)
        assert repr(reason).startswith("<Undecodable: ")
        [message] = caplog.messages
        assert message.startswith("peer@host: an exit reason cannot be decoded: ")

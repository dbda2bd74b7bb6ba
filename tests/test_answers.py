"""Answers: written, held, sent."""

from __future__ import annotations

from tests.support.pair import pair


async def test_a_reply_has_a_bound() -> None:
    async with pair(max_reply=1000) as both:
        assert await both.run("return 'x' * 900") == "x" * 900
        late = "import asyncio; await asyncio.sleep(0); return 'x' * 1000"
        for code in ("return 'x' * 1000", late):
            status, error = await both.call("eval", code, {})
            assert status == "error"
            assert error["code"] == "python_runtime_error"
            # {ok, Binary}: 2 + 4 bytes and 5 + 1000.
            assert "the result takes 1011 bytes, and a reply has at most 1000" in error["reason"]
        assert await both.run("return 1") == 1

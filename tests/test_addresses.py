"""The addresses of a host, in the order in which others look for a node there."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from snex_node.system.addresses import Address, is_loopback, resolve
from snex_runtime import child, cli

SIX = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
FOUR = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))


class TestResolve:
    def test_an_address_is_its_own(self) -> None:
        assert resolve("127.0.0.2", 99) == [Address(socket.AF_INET, ("127.0.0.2", 99))]

    @pytest.mark.parametrize("host", ["", None])
    def test_no_host_is_every_address_of_this_machine(self, host: str | None) -> None:
        assert resolve(host, 99)[0] == Address(socket.AF_INET, ("0.0.0.0", 99))

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".example", "a..b"])
    def test_what_does_not_resolve_is_an_os_error(self, host: str) -> None:
        with pytest.raises(OSError):
            resolve(host)

    @pytest.mark.parametrize(
        ("found", "hosts"),
        [
            ([SIX, FOUR], ["127.0.0.1", "::1"]),
            ([FOUR, SIX], ["127.0.0.1", "::1"]),
            ([SIX], ["::1"]),
        ],
        ids=["six first", "four first", "six only"],
    )
    def test_a_beam_looks_at_the_ipv4_address_first(
        self,
        monkeypatch: pytest.MonkeyPatch,
        found: list[tuple[object, ...]],
        hosts: list[str],
    ) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(found))
        assert [address.host for address in resolve("localhost")] == hosts
        assert child.listen_host("py@localhost") == hosts[0]
        assert cli.default_listen("py@localhost") == (hosts[0], 0)


ADDRESSES = [
    *("127.0.0.1", "127.255.0.9", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1"),
    *("10.0.0.1", "128.0.0.1", "::", "::2", "::ffff:10.0.0.1", "1::1", "fe80::1", "fe80::1%lo"),
    *("0.0.0.0", "192.0.2.1", "100::ffff:7f00:1"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_which_addresses_are_loopback(address: str) -> None:
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(known, "ipv4_mapped", None)  # which `is_loopback` minds from 3.13 on
    assert is_loopback(address) is (mapped or known).is_loopback


@pytest.mark.parametrize("text", ["", "?", "localhost", "127.0.0", "127.0.0.1.1", "::1::"])
def test_what_is_no_address_is_not_loopback(text: str) -> None:
    assert not is_loopback(text)

"""Where the cookie comes from, and which files are refused."""

from __future__ import annotations

import os
import re
import stat
import string
import subprocess
from pathlib import Path

import pytest

from snex_node.cookie import CookieError, default_path, find_cookie, make_cookie, read_cookie
from tests.support.epmd import RealEpmd, executable


def write(path: Path, content: bytes, mode: int = 0o400) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cookie"


class TestOrder:
    def test_a_named_file_comes_first(self, file: Path, tmp_path: Path) -> None:
        write(tmp_path / ".erlang.cookie", b"home")
        environ = {"SNEX_COOKIE": "variable", "HOME": str(tmp_path)}
        assert find_cookie(str(write(file, b"named")), environ) == "named"

    def test_then_the_variable(self, tmp_path: Path) -> None:
        write(tmp_path / ".erlang.cookie", b"home")
        assert find_cookie(None, {"SNEX_COOKIE": "variable", "HOME": str(tmp_path)}) == "variable"

    @pytest.mark.parametrize("environ", [{}, {"SNEX_COOKIE": ""}])
    def test_then_the_file_in_the_home_directory(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        write(tmp_path / ".erlang.cookie", b"home")
        assert find_cookie(None, {**environ, "HOME": str(tmp_path)}) == "home"

    def test_a_named_file_that_is_missing_is_not_made(self, file: Path) -> None:
        with pytest.raises(CookieError, match=re.escape(f"cannot read the cookie file {file}: No")):
            find_cookie(str(file), {"SNEX_COOKIE": "variable"})
        assert not file.exists()

    def test_without_home_it_is_the_one_of_the_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os.path, "expanduser", lambda path: "/of/the/user")
        assert default_path({}) == "/of/the/user/.erlang.cookie"

    def test_without_any_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        with pytest.raises(CookieError, match=r"Set HOME to .* SNEX_COOKIE, or name a file"):
            find_cookie(None, {})


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"abc", "abc"),
            (b"abc\n", "abc"),
            (b"abc\r\n \n", "abc"),
            (b" a b ", " a b "),
            (b"~!@#$%^&*()", "~!@#$%^&*()"),
            (b"x" * 255, "x" * 255),
        ],
    )
    def test_content(self, content: bytes, expected: str, file: Path) -> None:
        assert read_cookie(write(file, content)) == expected

    @pytest.mark.parametrize(
        "content", [b"\nabc", b"abc\ndef", b"ab\tc", "gehe\u00efm".encode(), b"\xff", b"a\0b"]
    )
    def test_what_erlang_does_not_take(self, content: bytes, file: Path) -> None:
        with pytest.raises(CookieError, match="is not one line of printable ASCII") as raised:
            read_cookie(write(file, content))
        assert "abc" not in str(raised.value)

    @pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n"])
    def test_empty(self, content: bytes, file: Path) -> None:
        with pytest.raises(CookieError, match=f"the cookie file {file} is empty: put the cluster"):
            read_cookie(write(file, content))

    @pytest.mark.parametrize("length", [256, 1020, 100_000])
    def test_too_long(self, length: int, file: Path) -> None:
        with pytest.raises(CookieError, match="holds more than 255 characters"):
            read_cookie(write(file, b"x" * length))

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CookieError, match="Is a directory"):
            read_cookie(tmp_path)

    @pytest.mark.parametrize("mode", [0o440, 0o404, 0o444, 0o644, 0o420, 0o402, 0o401, 0o410])
    def test_open_to_others(self, mode: int, file: Path) -> None:
        with pytest.raises(CookieError, match="run chmod 400 on it") as raised:
            read_cookie(write(file, b"secret-text", mode))
        assert "secret-text" not in str(raised.value)

    @pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
    def test_open_to_its_owner_only(self, mode: int, file: Path) -> None:
        assert read_cookie(write(file, b"abc", mode)) == "abc"

    def test_a_pipe(self) -> None:
        # As a shell gives it: --cookie-file <(pass show cookie), or --cookie-file /dev/stdin.
        reader, writer = os.pipe()
        os.write(writer, b"abc\n")
        os.close(writer)
        try:
            assert read_cookie(Path(f"/dev/fd/{reader}")) == "abc"
        finally:
            os.close(reader)


class TestVariable:
    def test_line_ends_behind_it_are_not_meant(self) -> None:
        assert find_cookie(None, {"SNEX_COOKIE": "abc\r\n"}) == "abc"

    @pytest.mark.parametrize("named", [False, True])
    def test_it_is_taken_away(self, file: Path, named: bool) -> None:
        environ = {"SNEX_COOKIE": "variable", "HOME": "/of/nobody"}
        find_cookie(str(write(file, b"named")) if named else None, environ)
        assert environ == {"HOME": "/of/nobody"}

    def test_it_is_found_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two nodes of one program have the same cookie."""
        monkeypatch.setattr("snex_node.cookie._taken", None)
        monkeypatch.setenv("SNEX_COOKIE", "variable")
        assert [find_cookie(), find_cookie()] == ["variable", "variable"]
        assert "SNEX_COOKIE" not in os.environ
        monkeypatch.setenv("SNEX_COOKIE", "another")
        assert [find_cookie(), find_cookie()] == ["another", "another"]

    def test_only_line_ends(self) -> None:
        with pytest.raises(CookieError, match="the environment variable SNEX_COOKIE is empty"):
            find_cookie(None, {"SNEX_COOKIE": "\n"})

    def test_too_long(self) -> None:
        with pytest.raises(CookieError, match="SNEX_COOKIE holds more than 255 characters"):
            find_cookie(None, {"SNEX_COOKIE": "x" * 256})


class TestMaking:
    def test_a_missing_one_is_made_and_used_again(self, tmp_path: Path) -> None:
        made = find_cookie(None, {"HOME": str(tmp_path)})
        path = tmp_path / ".erlang.cookie"
        assert path.read_text() == made
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert find_cookie(None, {"HOME": str(tmp_path)}) == made

    def test_what_is_made(self, tmp_path: Path) -> None:
        cookies = []
        for number in range(5):
            make_cookie(tmp_path / str(number))
            cookies.append(read_cookie(tmp_path / str(number)))
        assert all(len(made) == 20 and set(made) <= set(string.ascii_uppercase) for made in cookies)
        assert len(set(cookies)) == 5

    def test_the_mode_is_0400_whatever_the_umask(self, file: Path) -> None:
        before = os.umask(0)
        try:
            make_cookie(file)
        finally:
            os.umask(before)
        assert stat.S_IMODE(file.stat().st_mode) == 0o400

    def test_one_that_another_process_made_first_stays(self, file: Path) -> None:
        write(file, b"theirs")
        make_cookie(file)
        assert read_cookie(file) == "theirs"

    def test_no_place_for_it(self, tmp_path: Path) -> None:
        home = tmp_path / "missing"
        with pytest.raises(CookieError, match=r"cannot make the cookie file .*: No such file") as e:
            find_cookie(None, {"HOME": str(home)})
        for remedy in ("HOME", "--cookie-file", "SNEX_COOKIE"):
            assert remedy in str(e.value)

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / ".erlang.cookie").mkdir()
        with pytest.raises(CookieError, match=r"cannot read .*: Is a directory\. Set HOME to"):
            find_cookie(None, {"HOME": str(tmp_path)})


@pytest.mark.interop
@pytest.mark.parametrize("content", [b" abc ", b"abc\r\n \n", None])
def test_erlang_reads_the_same_cookie(content: bytes | None, file: Path, epmd: RealEpmd) -> None:
    home = file.parent
    path = home / ".erlang.cookie"
    make_cookie(path) if content is None else write(path, content)
    show = 'file:write_file("shown", atom_to_list(erlang:get_cookie())), halt().'
    subprocess.run(
        [
            executable("erl"),
            "-noinput",
            "-start_epmd",
            "false",
            "-name",
            f"c{os.getpid()}@127.0.0.1",
            "-eval",
            show,
        ],
        env={**os.environ, "HOME": str(home), "ERL_EPMD_PORT": str(epmd.port)},
        cwd=home,
        timeout=30,
        check=True,
        capture_output=True,
    )
    assert (home / "shown").read_text() == read_cookie(path)

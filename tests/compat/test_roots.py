"""The parts of the runner that decide something; that it runs, `make compat` shows."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.compat import roots

TARGETS = """\
Packages|./||http://flat.example/
Packages|nodistro|main|http://other.example/
Packages|bookworm-updates|main|http://mirror.example/debian/
Packages|bookworm-security|main|http://mirror.example/debian-security/
Packages|bookworm|contrib|http://contrib.example/debian/
Translations|bookworm|main|http://translations.example/debian/
Packages|bookworm|main|http://mirror.example/debian/
"""

REPORT = """\
<testsuites>
  <testsuite name="pytest" tests="9" failures="2" errors="1" skipped="3" time="1.5" />
  <testsuite name="more" tests="1" failures="0" errors="0" skipped="0" time="2.0" />
</testsuites>
"""


def test_mirror_is_that_of_the_release_itself() -> None:
    assert roots.debian_mirror(TARGETS, "bookworm") == "http://mirror.example/debian/"


def test_mirror_of_a_machine_that_follows_testing() -> None:
    targets = "Packages|testing|main|http://mirror.example/\n"
    assert roots.debian_mirror(targets, "") == "http://mirror.example/"


def test_mirror_from_a_list_of_mirrors(tmp_path: Path) -> None:
    listing = tmp_path / "mirrors.list"
    listing.write_text("http://first.example/\tpriority:1\nhttp://second.example/\n")
    assert roots.first_of_list(f"mirror+file:{listing}/") == "http://first.example/"


@pytest.mark.parametrize("targets", ["", TARGETS.replace("bookworm|main", "jammy|main")])
def test_machine_without_debian_is_told_what_to_do(targets: str) -> None:
    with pytest.raises(roots.StepError, match=r"add one to /etc/apt/sources\.list\.d"):
        roots.debian_mirror(targets, "bookworm")


def test_local_paths_of_a_pip_configuration(tmp_path: Path) -> None:
    wheels, index, certificate = tmp_path / "wheels", tmp_path / "an index", tmp_path / "ca.pem"
    wheels.mkdir()
    (index / "simple").mkdir(parents=True)
    certificate.touch()
    text = (
        f"[global]\ncert={certificate}\nfind-links =\n  {wheels}\n  {tmp_path}/missing\n"
        f"index-url = https://index.example/simple {(index / 'simple').as_uri()}\n"
    )
    assert list(roots.local_paths(text)) == [certificate, wheels, index]


def test_root_directory_is_never_bound() -> None:
    assert list(roots.local_paths("/ file:///usr")) == []


def test_home_configuration_of_pip_moves_to_the_home_of_the_root(tmp_path: Path) -> None:
    configuration = tmp_path / ".config/pip/pip.conf"
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f"[global]\nfind-links = {wheels}\n")
    binds = roots.network_binds({}, tmp_path)
    assert binds[str(configuration)] == "/root/.config/pip/pip.conf"
    assert binds[str(wheels)] == str(wheels)


def test_only_what_reaches_the_mirrors_is_passed_on() -> None:
    kept = {"PIP_INDEX_URL": "a", "https_proxy": "b", "NO_PROXY": "c", "SSL_CERT_FILE": "d"}
    kept |= {"UV_DEFAULT_INDEX": "e", "UV_NATIVE_TLS": "f"}
    others = {"HOME": "/x", "PYTHONPATH": "/y", "MY_PIP_TOKEN": "z", "UV_CACHE_DIR": "/u"}
    assert roots.passed_on({**kept, **others}) == kept


def test_count_adds_up_the_report(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)
    row = roots.Row("sid")
    roots.count(report, row)
    assert (row.passed, row.failed, row.skipped, row.seconds) == (4, 3, 3, 3.5)
    assert not row.good


@pytest.mark.parametrize(
    ("row", "good"),
    [
        (roots.Row("sid", passed=1), True),
        (roots.Row("sid", passed=1, notes=["without uvloop"]), True),
        (roots.Row("sid", passed=0), False),
        (roots.Row("sid", passed=1, failed=1), False),
        (roots.Row("sid", passed=1, problems=["killed"]), False),
    ],
)
def test_a_root_is_good_when_tests_ran_and_all_went_well(row: roots.Row, good: bool) -> None:
    assert row.good is good


def test_table_shows_versions_and_remarks() -> None:
    row = roots.Row("sid", "2030-01-02", "29", "1.20.4", "3.14.1", "pytest", passed=7)
    row.notes.append("without x")
    head, line, note = roots.table([row]).splitlines()
    assert head.split()[:6] == ["root", "built", "OTP", "Elixir", "Python", "tests"]
    assert line.split()[:7] == ["sid", "2030-01-02", "29", "1.20.4", "3.14.1", "pytest", "7"]
    assert line.endswith("ok")
    assert head.index("Python") == line.index("3.14.1")
    assert note == "sid: without x"


def test_arguments_behind_the_dashes_go_to_pytest() -> None:
    options, arguments = roots.parse(["--refresh", "trixie", "--", "-k", "ping", "--", "x"])
    assert (options.refresh, options.shell, options.roots) == (True, False, ["trixie"])
    assert arguments == ["-k", "ping", "--", "x"]


@pytest.mark.parametrize(
    ("argv", "runs"),
    [
        ([], ([], [])),
        (["--", "-k", "ping"], (["-k", "ping"], None)),
        (["--client"], (None, [])),
        (["--client", "sid", "--", "test/env_test.exs"], (None, ["test/env_test.exs"])),
    ],
)
def test_both_suites_run_unless_one_is_chosen(argv: list[str], runs: object) -> None:
    assert roots.what_runs(*roots.parse(argv)) == runs


def test_all_roots_when_none_is_named() -> None:
    assert roots.parse([])[0].roots == list(roots.ROOTS)


def test_a_root_has_the_python_that_it_is_named_after(tmp_path: Path) -> None:
    root = roots.Root("sid-3.15", tmp_path)
    assert (root.suite, root.python) == ("sid", "python3.15")
    assert {"python3.15", "python3.15-dev", "python3.15-venv"} <= set(root.packages)
    assert root.directory != roots.Root("sid", tmp_path).directory


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("Finished in 0.1 seconds\n12 tests, 0 failures\n", (12, 0, 0)),
        ("1 doctest, 12 tests, 2 failures, 3 excluded, 1 skipped\n", (7, 2, 4)),
        ("1 test, 1 failure\n", (0, 1, 0)),
        ("\nResult: 12 passed\n", (12, 0, 0)),
        ("\nResult: 102 passed (4 doctests, 98 tests)\n", (102, 0, 0)),
        ("\nResult: 1/3 passed, 1 skipped, 4 excluded\nFailed: 2 tests\n", (1, 2, 5)),
        ("\nResult: 0/3 passed\nFailed: 3 tests\n", (0, 3, 0)),
        ("** (CompileError) 3 tests, of which\n", (0, 0, 0)),
    ],
)
def test_what_exunit_says_is_counted(said: str, counts: tuple[int, int, int]) -> None:
    row = roots.Row("sid")
    roots.count_exunit(said, row)
    assert (row.passed, row.failed, row.skipped) == counts


def test_projects_for_uv_are_found_in_the_tests_of_the_client() -> None:
    files = roots.pyprojects(roots.PROJECT / "elixir/test")
    assert "my_python_proj/pyproject.toml" in files
    texts = b"".join(files.values())
    assert b'dependencies = ["numpy>=2"]' in texts
    assert b'dependencies = ["colorama==0.4.6"]' in texts
    assert b"#{" not in texts


def test_a_project_within_a_text_is_found(tmp_path: Path) -> None:
    inner = '\\"\\"\\"\n      [project]\n      name = "a"\n      \\"\\"\\"'
    (tmp_path / "x_test.exs").write_text(f'"""\n  use Snex.Interpreter, text: {inner}\n"""\n')
    assert roots.pyprojects(tmp_path) == {"x_test-0/pyproject.toml": b'[project]\nname = "a"'}


@pytest.mark.parametrize("argv", [["potato"], ["--shell"], ["--shell", "sid", "trixie"]])
def test_wrong_usage_ends_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        roots.parse(argv)
    assert exit_.value.code == 2


def test_cache_directory(tmp_path: Path) -> None:
    below = Path("snex-node/compat")
    assert roots.cache_directory({"SNEX_COMPAT_CACHE": "/a"}, tmp_path) == Path("/a")
    assert roots.cache_directory({"XDG_CACHE_HOME": "/b"}, tmp_path) == Path("/b") / below
    assert roots.cache_directory({}, tmp_path) == tmp_path / ".cache" / below


def test_a_root_with_another_recipe_is_out_of_date(tmp_path: Path) -> None:
    root = roots.Root("sid", tmp_path)
    assert not roots.up_to_date(root)
    root.recipe.parent.mkdir(parents=True)
    root.recipe.write_text(roots.recipe(root))
    assert roots.up_to_date(root)
    root.recipe.write_text(roots.recipe(root) + "another-package\n")
    assert not roots.up_to_date(root)


def test_stream_returns_status_and_keeps_the_output() -> None:
    log = io.BytesIO()
    script = "import sys; print('out'); sys.exit('err')"
    assert roots.stream([sys.executable, "-c", script], log, echo=False, limit_s=30) == 1
    assert set(log.getvalue().split()) == {b"out", b"err"}


def test_stream_kills_what_takes_too_long() -> None:
    script = "import threading; threading.Event().wait()"
    command = [sys.executable, "-c", script]
    assert roots.stream(command, io.BytesIO(), echo=False, limit_s=0.2) == -9


def test_a_step_that_fails_shows_its_output_and_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "build.log"
    with pytest.raises(roots.StepError) as error:
        roots.step("looking", [sys.executable, "-c", "raise SystemExit('no such thing')"], log)
    assert "looking failed (status 1)" in str(error.value)
    assert str(log) in str(error.value)
    assert str(error.value).endswith("no such thing")

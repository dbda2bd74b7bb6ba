"""The client is installed as strangers install it: from a fresh clone, and with one build.

Every test that says so starts where nothing was built before, because a second build hides what the
first one left out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import mix
from tests.support.epmd import RealEpmd, executable
from tests.support.mix import answer, run, write

pytestmark = [pytest.mark.beside, pytest.mark.slow, pytest.mark.timeout(2 * mix.SECONDS)]


@pytest.fixture(autouse=True)
def own_epmd(epmd: RealEpmd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are known to the epmd of the tests, which ends with them."""
    monkeypatch.setenv("ERL_EPMD_PORT", str(epmd.port))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the work tree, which nothing changes."""
    directory = tmp_path_factory.mktemp("repository") / "snex-node.git"
    mix.make_repository(directory)
    return directory


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A clone in which nothing was built."""
    return mix.clone(repository, tmp_path / "snex-node")


@pytest.fixture
def app(clone: Path, tmp_path: Path) -> Path:
    """A project beside the clone that has the client as a path dependency, not built yet."""
    return make_app(tmp_path / "app", '{:snex, path: "../snex-node/elixir"}')


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a project beside its clone, built once; a test changes a copy."""
    directory = tmp_path_factory.mktemp("built")
    mix.clone(repository, directory / "snex-node")
    app = make_app(directory / "app", '{:snex, path: "../snex-node/elixir"}')
    run(app, "mix", "compile")
    return directory


@pytest.fixture
def built_app(built: Path, tmp_path: Path) -> Path:
    """A copy of it; the clone is beside it."""
    shutil.copytree(built, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/app"


def make_app(directory: Path, dependency: str) -> Path:
    write(
        directory,
        {
            "mix.exs": mix.mix_exs("Demo", "demo", f"[{dependency}]"),
            "lib/demo.ex": mix.CHECK,
            "test/test_helper.exs": "ExUnit.start()\n",
            "test/demo_test.exs": "defmodule DemoTest do\n  use ExUnit.Case\n\n"
            '  test "checks", do: Demo.check()\nend\n',
        },
    )
    return directory


def check(output: str, home: Path) -> None:
    """Python found our packages below `home`, and the NIF is loaded."""
    assert Path(answer(output, "found")).is_relative_to(home / "priv/python"), output
    assert answer(output, "nif") == "true", output


# --- the ways to install it, each with its first build ------------------------------------------


def test_a_path_dependency(app: Path, clone: Path) -> None:
    check(run(app, "mix", "run", "-e", "Demo.check()"), app / "_build/dev/lib/snex")
    # Nothing is made in the clone, which other projects may share.
    assert not (clone / "elixir/priv").exists()
    assert not (clone / "elixir/_build").exists()


def test_mix_test_comes_first(app: Path) -> None:
    check(run(app, "mix", "test"), app / "_build/test/lib/snex")


def test_the_tests_of_the_client_itself_come_first(clone: Path) -> None:
    env = {"SNEX_TEST_PYTHON": mix.PYTHON, "SNEX_TEST_WITHOUT_UV": "1"}
    output = run(clone / "elixir", "mix", "test", "test/serde_test.exs", env=env)
    # Elixir 1.20 says it in another way than those before.
    assert re.search(r"^(.*\d+ tests, 0 failures|Result: \d+ passed)", output, re.M), output


def test_a_git_dependency_with_subdir(repository: Path, tmp_path: Path) -> None:
    dependency = f'{{:snex, git: "{repository.as_uri()}", subdir: "elixir"}}'
    app = make_app(tmp_path / "app", dependency)
    run(app, "mix", "deps.get")
    check(run(app, "mix", "run", "-e", "Demo.check()"), app / "_build/dev/lib/snex")


def test_a_sparse_checkout_says_what_to_write_instead(repository: Path, tmp_path: Path) -> None:
    dependency = f'{{:snex, git: "{repository.as_uri()}", sparse: "elixir"}}'
    app = make_app(tmp_path / "app", dependency)
    run(app, "mix", "deps.get")
    output = run(app, "mix", "compile", status=1)
    assert 'with git, say `subdir: "elixir"` instead of `sparse: "elixir"`' in output


APPLICATION = """\
defmodule Demo.Application do
  use Application

  def start(_type, _args) do
    check = fn ->
      Demo.check()
      System.halt(0)
    end

    {:ok, spawn_link(check)}
  end
end
"""


def test_a_release(app: Path, tmp_path: Path) -> None:
    project = (app / "mix.exs").read_text()
    project = project.replace(
        "extra_applications:", "mod: {Demo.Application, []}, extra_applications:"
    )
    write(app, {"mix.exs": project, "lib/demo_application.ex": APPLICATION})
    run(app, "mix", "release", "--quiet", env={"MIX_ENV": "prod"})
    release = tmp_path / "moved"
    (app / "_build/prod/rel/demo").rename(release)
    shutil.rmtree(app)
    [snex] = release.glob("lib/snex-*")
    env = {"RELEASE_DISTRIBUTION": "none"}
    check(run(tmp_path, str(release / "bin/demo"), "start", env=env), snex)
    check(run(tmp_path, str(release / "bin/demo"), "eval", "Demo.check()", env=env), snex)

    # Its NIF is loaded while it boots, before there is anything to log with.
    (snex / "priv/snex_nif.so").write_bytes(b"built by nobody")
    output = run(tmp_path, str(release / "bin/demo"), "start", env=env)
    assert answer(output, "nif") == "false"
    assert f"{snex / 'priv/snex_nif'} cannot be loaded" in output


def test_an_umbrella(clone: Path, tmp_path: Path) -> None:
    umbrella = tmp_path / "umbrella"
    shared = ' build_path: "../../_build", deps_path: "../../deps", lockfile: "../../mix.lock",'
    one = mix.mix_exs("Demo", "demo", '[{:snex, path: "../../../snex-node/elixir"}]')
    two = mix.mix_exs("Other", "other", "[{:demo, in_umbrella: true}]")
    root = mix.mix_exs("Umbrella", "none", "[]").replace("app: :none", 'apps_path: "apps"')
    write(
        umbrella,
        {
            "mix.exs": root,
            "apps/demo/mix.exs": one.replace("app:", f"{shared} app:"),
            "apps/demo/lib/demo.ex": mix.CHECK,
            "apps/other/mix.exs": two.replace("app:", f"{shared} app:"),
            "apps/other/lib/other.ex": "defmodule Other do\n  defdelegate check, to: Demo\nend\n",
        },
    )
    check(run(umbrella, "mix", "run", "-e", "Other.check()"), umbrella / "_build/dev/lib/snex")


def test_a_script_that_installs_it(clone: Path, tmp_path: Path) -> None:
    installs = tmp_path / "installs"
    dependency = f'{{:snex, path: "{clone / "elixir"}"}}'
    write(tmp_path, {"script.exs": f"Mix.install([{dependency}])\n{mix.CHECK}Demo.check()\n"})
    output = run(tmp_path, "elixir", "script.exs", env={"MIX_INSTALL_DIR": str(installs)})
    [snex] = installs.glob("**/_build/dev/lib/snex")
    check(output, snex)


def test_a_package(app: Path, clone: Path, tmp_path: Path) -> None:
    """What would be published: the files of the package, without the repository around them."""
    code = """
    Snex.PythonSources.package()
    for name <- Mix.Project.config()[:package][:files], do: IO.puts("file #{name}")
    """
    output = run(clone / "elixir", "mix", "run", "--no-compile", "--no-start", "-e", code)
    package = tmp_path / "package"
    for line in output.splitlines():
        source = clone / "elixir" / line.removeprefix("file ")
        if source.is_dir():
            shutil.copytree(source, package / source.name)
        else:
            package.mkdir(exist_ok=True)
            shutil.copy2(source, package)
    names = {path.name for path in package.iterdir()}
    assert {"lib", "c_src", "python", "guides", "README.md", "CHANGELOG.md", "LICENSE"} <= names
    assert not list(package.rglob("__pycache__"))
    assert not list(package.rglob("*.so"))
    shutil.rmtree(clone)
    package.rename(clone)
    write(app, {"mix.exs": mix.mix_exs("Demo", "demo", '[{:snex, path: "../snex-node"}]')})
    check(run(app, "mix", "run", "-e", "Demo.check()"), app / "_build/dev/lib/snex")


def test_a_build_that_embeds(app: Path) -> None:
    embedded = mix.mix_exs("Demo", "demo", '[{:snex, path: "../snex-node/elixir"}]')
    write(app, {"mix.exs": embedded.replace("app:", "build_embedded: true, app:")})
    check(run(app, "mix", "run", "-e", "Demo.check()"), app / "_build/dev/lib/snex")


# --- what an earlier build left ------------------------------------------------------------------


def test_what_was_built_into_the_sources_gives_way(app: Path, clone: Path) -> None:
    """Until 0.1.0 all was built into the folder `priv` of the sources, which Mix linked to."""
    stale = {"python/snex_runtime/__init__.py": "raise ImportError('stale')", "snex_nif.so": "old"}
    write(clone / "elixir/priv", stale)
    run(app, "mix", "deps.compile")
    check(run(app, "mix", "run", "-e", "Demo.check()"), app / "_build/dev/lib/snex")
    assert not (clone / "elixir/priv").exists()


def test_a_link_that_leads_nowhere_gives_way(built_app: Path) -> None:
    app = built_app
    snex = app / "_build/dev/lib/snex"
    shutil.rmtree(snex / "priv")
    (snex / "priv").symlink_to(app / "gone")
    check(run(app, "mix", "run", "-e", "Demo.check()"), snex)


def test_files_that_others_keep_in_priv_stay(app: Path, clone: Path) -> None:
    write(clone / "elixir/priv", {"notes.txt": "mine"})
    snex = app / "_build/dev/lib/snex"
    check(run(app, "mix", "run", "-e", "Demo.check()"), snex)
    check(run(app, "mix", "run", "-e", "Demo.check()"), snex)
    assert (clone / "elixir/priv/notes.txt").read_text() == "mine"


def test_a_build_follows_its_sources(built_app: Path) -> None:
    app, clone = built_app, built_app.parent / "snex-node"
    built = app / "_build/dev/lib/snex/priv/python/snex_runtime"
    write(clone, {"snex_runtime/added.py": "x = 1\n", "snex_runtime/server.py": "x = 2\n"})
    (clone / "snex_runtime/demo.py").unlink()
    run(app, "mix", "compile")
    assert (built / "added.py").read_text() == "x = 1\n"
    assert (built / "server.py").read_text() == "x = 2\n"
    assert not (built / "demo.py").exists()


# --- the NIF belongs to one Erlang/OTP -----------------------------------------------------------


def nif_of(app: Path) -> Path:
    return app / "_build/dev/lib/snex/priv/snex_nif.so"


def otp_root() -> Path:
    erl = [executable("erl"), "-noshell", "-eval", "io:put_chars(code:root_dir()), halt()."]
    return Path(subprocess.run(erl, check=True, capture_output=True, text=True).stdout)


def another_otp(directory: Path) -> dict[str, str]:
    """The same Erlang/OTP at another place; returns the environment that has Elixir run on it."""
    root = otp_root()
    (directory / "otp").mkdir(parents=True)
    for path in root.iterdir():
        (directory / "otp" / path.name).symlink_to(path)
    [erts] = root.glob("erts-*")
    binaries = directory / "otp" / erts.name / "bin"
    script = directory / "bin/erl"
    write(
        directory,
        {
            "bin/erl": "#!/bin/sh\n"
            f"export ROOTDIR={shlex.quote(str(directory / 'otp'))} EMU=beam PROGNAME=erl\n"
            f'export BINDIR={shlex.quote(str(binaries))}\nexec "$BINDIR/erlexec" "$@"\n'
        },
    )
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def test_a_nif_of_another_otp_is_built_anew(built_app: Path, tmp_path: Path) -> None:
    first = nif_of(built_app).stat().st_ino
    run(built_app, "mix", "compile")
    assert nif_of(built_app).stat().st_ino == first, "for the same one it is not"
    env = another_otp(tmp_path / "another")
    output = run(built_app, "mix", "run", "-e", "Demo.check()", env=env)
    check(output, built_app / "_build/dev/lib/snex")
    assert nif_of(built_app).stat().st_ino != first


def test_a_nif_that_came_from_elsewhere_is_built_anew(built_app: Path) -> None:
    nif_of(built_app).write_bytes(b"built by nobody")
    output = run(built_app, "mix", "run", "-e", "Demo.check()")
    check(output, built_app / "_build/dev/lib/snex")


def test_a_nif_that_cannot_be_built_anew_is_removed(built_app: Path, tmp_path: Path) -> None:
    env = {**another_otp(tmp_path / "another"), "CC": "false"}
    output = run(built_app, "mix", "run", "-e", "Demo.check()", env=env)
    assert "environments are freed when the process that made them ends" in output
    assert answer(output, "nif") == "false"
    assert not nif_of(built_app).exists()


def test_a_nif_that_cannot_be_loaded_is_told_of(built_app: Path) -> None:
    """It came to another machine with its build; nothing is compiled there."""
    nif_of(built_app).write_bytes(b"built by nobody")
    output = run(built_app, "mix", "run", "--no-compile", "--no-deps-check", "-e", "Demo.check()")
    assert answer(output, "nif") == "false"
    assert f"{nif_of(built_app).with_suffix('')} cannot be loaded" in output
    assert "mix deps.compile snex --force" in output


def test_builds_of_one_clone_do_not_share_a_nif(built_app: Path, tmp_path: Path) -> None:
    other = make_app(built_app.parent / "other", '{:snex, path: "../snex-node/elixir"}')
    first = nif_of(built_app).stat().st_ino
    run(other, "mix", "compile", env=another_otp(tmp_path / "another"))
    assert nif_of(other).exists()
    run(built_app, "mix", "compile")
    assert nif_of(built_app).stat().st_ino == first

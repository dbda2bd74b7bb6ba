"""The reference of the Elixir client: pages made before the build, and links to them.

The pages are what `Code.fetch_docs` gives (docs/elixir_reference.exs), so there is nothing to keep
up to date. A name such as ``Snex.Pool`` or ``Snex.pyeval/4`` in code type leads there from any
page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

FOLDER = "elixir/reference"
SECONDS = 300
_log = logging.getLogger(__name__)
_LABEL = re.compile(r"^\((\S+)\)=$", re.M)


def compile_and_write(root: Path, folder: Path) -> None:
    """Have Mix compile the client, in a build of its own, and write the pages."""
    mix = shutil.which("mix")
    if mix is None:
        raise ExtensionError("the Elixir reference needs `mix`: install Elixir")
    done = subprocess.run(
        [mix, "run", "--no-start", "../docs/elixir_reference.exs", str(folder)],
        cwd=root / "elixir",
        env={**os.environ, "MIX_ENV": "dev", "MIX_BUILD_PATH": str(build_path(root))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ExtensionError(f"the Elixir reference was not written:\n{done.stdout}")


def build_path(root: Path) -> Path:
    """Where Mix builds the client for the site and for the tests of its pages."""
    return root / "build" / "elixir"


def write(app: Sphinx) -> None:
    """Write the pages, and remember what there is to link to."""
    source = Path(app.srcdir)
    folder = source / FOLDER
    compile_and_write(source.parent, folder)
    labels: dict[str, str] = {}
    for path in sorted(folder.glob("*.md")):
        page = f"{FOLDER}/{path.stem}"
        for label in _LABEL.findall(path.read_text(encoding="utf-8")):
            labels[label] = page
    app.config.elixir_labels = labels


class LinkNames(SphinxTransform):
    """Makes links of names of the client in code type, but in headings and where one is already."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        labels: dict[str, str] = self.config.elixir_labels
        here = self.env.docname
        # On the page of a module its own functions go without its name.
        own = here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else None
        for node in list(self.document.findall(nodes.literal)):
            label = self.label(node.astext(), own)
            parent = node.parent
            if label not in labels or isinstance(parent, (nodes.title, nodes.reference)):
                continue
            if type(parent).__name__ == "pending_xref" or label == own:
                continue
            # As Sphinx writes the addresses of pages below others.
            page = os.path.relpath(labels[label], os.path.dirname(here) or ".")
            target = "" if labels[label] == here else f"{page}.html"
            link = nodes.reference("", "", internal=True, refuri=f"{target}#{nodes.make_id(label)}")
            parent.replace(node, link)
            link += node

    @staticmethod
    def label(name: str, own: str | None) -> str:
        """The label of what is called so: ``t:Snex.Env.t/0`` has it as ``Snex.Env.t:t/0``."""
        kind, name = ("t:", name[2:]) if name.startswith("t:") else ("", name)
        module, _, last = name.rpartition(".")
        if "/" not in name:
            return name
        return f"{module or own}.{kind}{last}"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("elixir_labels", {}, "env")
    app.connect("builder-inited", write)
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "version": "1"}

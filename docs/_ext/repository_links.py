"""Links that lead out of docs/ on a forge lead to pages of the site here.

Pages are read on a forge as well, where ``../README.md`` is the way to the front page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "RELEASING.md": "releasing",
    "elixir/README.md": "elixir/index",
}
"""Files of the repository, and the page of the site that has what they have."""

_LINK = re.compile(r"\]\(((?:\.\./)+|docs/)?([^)#\s]*)(#[^)\s]*)?\)")
_INCLUDE = re.compile(r"^<!-- page: (\S+) -->$", re.M)
_HIDDEN = re.compile(r"\[[^\]]+\]\((\.github/[^)]+)\)")  # of no interest but on a forge
_PART = re.compile(r"^<!-- part: (\S+) (.+) -->$", re.M)


def rewrite(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put in what a page has of files of the repository, and lead links to pages."""
    source = Path(app.srcdir)
    depth = docname.count("/")

    def included(found: re.Match[str]) -> str:
        path = source.parent / found[1]
        app.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8").replace("](guides/", "](")
        return _HIDDEN.sub(r"`\1`", text.replace("](snex.livemd)", "](livebook.md)"))

    def link(found: re.Match[str]) -> str:
        before, name, anchor = found[1] or "", found[2], found[3] or ""
        up = before.count("../")
        if name in PAGES and (up == depth + 1 or (not up and docname in PAGES.values())):
            page = PAGES[name]
            return f"]({'../' * depth}{page}.md{anchor if page != 'index' else ''})"
        if before == "docs/":
            return f"]({'../' * depth}{name}{anchor})"
        return found[0]

    def part(found: re.Match[str]) -> str:
        _, heading, after = included(found).partition(f"\n## {found[2]}\n")
        if not heading:
            raise ExtensionError(f"{docname}: {found[1]} has no section {found[2]!r}")
        text = after.partition("\n## ")[0]
        # A paragraph that leads from there to this page has nothing to say here.
        return "\n\n".join(p for p in text.split("\n\n") if f"](docs/{docname}.md)" not in p)

    text = _PART.sub(part, _INCLUDE.sub(included, content[0]))
    content[0] = _LINK.sub(link, text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True, "version": "1"}

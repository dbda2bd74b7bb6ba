"""The directive ``command-reference``: a section for each command, from the parsers themselves."""

from __future__ import annotations

import argparse
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from snex_runtime import cli


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name, in the order of ``--help``."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(group.choices)


def page() -> list[str]:
    """The reference as lines of Markdown."""
    parser = cli._parser()
    lines = [_text(parser.description), "", _text(parser.epilog), ""]
    for name, command in commands(parser).items():
        lines += [f"## `snex-node {name}`", "", _text(command.description), ""]
        lines += ["```text", *command.format_usage().strip().splitlines(), "```", ""]
        lines += _table(command)
    return lines


def _table(command: argparse.ArgumentParser) -> list[str]:
    rows = [_row(action, command) for action in command._actions if action.dest != "help"]
    return ["| | | default |", "|---|---|---|", *rows, ""]


def _row(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    formatter = command._get_formatter()
    value = "" if action.nargs == 0 else formatter._format_args(action, _metavar(action))
    names = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    meaning, default = _text(formatter._expand_help(action)), ""
    if " (default: " in meaning:
        meaning, _, default = meaning.removesuffix(")").rpartition(" (default: ")
    elif meaning == str(action.default):  # `names` tells its host so
        meaning, default = "the host", meaning
    if default.endswith(" here"):  # on the machine that builds the site
        default = "by the number of processors"
    shown = ", ".join(f"`{_cell(name)}`" for name in names)
    return f"| {shown} | {_cell(meaning)} | {_cell(default)} |"


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("~", r"\~").split())


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


class CommandReference(SphinxDirective):
    """What ``snex-node --help`` and that of each command say."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(cli.__file__)
        container = nodes.Element()
        self.state.nested_parse(StringList(page(), cli.__file__), 0, container, match_titles=True)
        return list(container.children)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True, "version": "1"}

"""How the documentation site is built: `make docs`. Nothing is fetched meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from snex_node import __version__  # noqa: E402

project = "snex-node"
copyright = "the authors of snex-node"  # noqa: A001 - Sphinx's name
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "command_reference",
    "elixir_reference",
    "repository_links",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext", "_static"]
nitpicky = True
# The standard library has no page here, and pages of others are not fetched. The second group is
# annotations of ours that are no public names: aliases, type variables, and rooms of the house.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(asyncio|collections|contextlib|enum|argparse|logging|os|pathlib|types|typing)\..*",
    ),
    (r"py:(obj|data|mod|exc|func|meth|attr)", r".*"),
    (r"py:class", r"([a-z_]*\.)*(snex_node|snex_runtime)\..*"),
    (r"py:class", r"[A-Za-z_]\w*|optional|\.\.\."),
]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
default_role = "py:obj"  # a name in single backquotes, as docstrings have them
add_module_names = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"snex-node {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
smartquotes = False  # `--help` has two hyphens
highlight_language = "none"
pygments_style = "default"
pygments_dark_style = "monokai"

"""Evaluates Python for processes of a BEAM cluster."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this runs before pip, or anybody else, has looked
    try:
        import snex_node  # noqa: F401 - it says so
    except ImportError as error:
        if sys.argv[:1] == ["-m" if sys.version_info[0] > 2 else "-c"]:
            sys.exit(str(error))  # Python is about to run us: nobody needs to see where it was
        raise

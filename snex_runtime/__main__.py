"""``python -m snex_runtime`` is the ``snex-node`` command."""

import sys

from snex_runtime import search_path

if __name__ == "__main__":
    search_path.hide()
    if sys.argv[1:] == ["child"]:  # without what the other commands need: each interpreter is one
        from snex_runtime.child import main
    else:
        from snex_runtime.cli import main

    sys.exit(main())

"""``python -m snex_runtime`` is the ``snex-node`` command."""

import sys

from snex_runtime import search_path

if __name__ == "__main__":
    search_path.hide()
    from snex_runtime.cli import main

    sys.exit(main())

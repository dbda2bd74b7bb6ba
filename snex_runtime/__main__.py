"""``python -m snex_runtime`` is the ``snex-node`` command."""

from __future__ import annotations

import sys

from snex_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())

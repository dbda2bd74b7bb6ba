"""``python -m benchmarks [calls|codec|all]``."""

from __future__ import annotations

import argparse

from benchmarks import calls, codec

BENCHMARKS = {"calls": calls.main, "codec": codec.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "which",
        nargs="?",
        default="all",
        choices=(*BENCHMARKS, "all"),
        help="calls: a node called from a BEAM, beside a BEAM called from a BEAM; codec: terms to "
        "objects and back (default: %(default)s)",
    )
    which = parser.parse_args().which
    for name, run in BENCHMARKS.items():
        if which in (name, "all"):
            run()


if __name__ == "__main__":
    main()

"""The types of values, and what says how values become them; all of it is in `snex` too.

>>> from snex.models import Atom
>>> Atom("ok") == "ok"
True
"""

from snex_runtime.interface import BeamModuleProxy, ElixirError
from snex_runtime.serde import Atom, DistinctAtom, EncodingOpt, EncodingOpts, Term

__all__ = [
    "Atom",
    "BeamModuleProxy",
    "DistinctAtom",
    "ElixirError",
    "EncodingOpt",
    "EncodingOpts",
    "Term",
]

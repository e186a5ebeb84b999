"""Entropy coders for the leaves of an encoding: integer symbols, masks, and raw floats, bit-exact and static per leaf.

Every encoder measures its candidates and keeps the fewest bytes; every decoder trusts nothing but the shape it is given
and answers damaged or hostile bytes with `FormatError`.

Decoding is exact everywhere: frequencies are integers. Choosing among candidates weighs float64 estimates, so a machine
with another `log2` could in a near tie write another, equally good, table; every machine reads both.
"""

from gossamer.coding.coded import Coded, Coder
from gossamer.coding.effort import Effort, check_effort
from gossamer.coding.floats import decode_floats, encode_floats
from gossamer.coding.grids import decode_grid, encode_grid
from gossamer.coding.masks import decode_mask, encode_mask
from gossamer.coding.sparse import decode_sparse_symbols, encode_sparse_symbols
from gossamer.coding.symbols import decode_symbols, encode_symbols, order0_bits

__all__ = [
    "Coded",
    "Coder",
    "Effort",
    "check_effort",
    "decode_floats",
    "decode_grid",
    "decode_mask",
    "decode_sparse_symbols",
    "decode_symbols",
    "encode_floats",
    "encode_grid",
    "encode_mask",
    "encode_sparse_symbols",
    "encode_symbols",
    "order0_bits",
]

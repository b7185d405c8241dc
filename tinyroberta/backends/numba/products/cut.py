"""Products of cut rows by a weight's panels: which kernel multiplies what."""

from ..machine import amx
from .dots import _bf16_dots, _sliced_dots
from .launch import chunks_of, run
from .outputs import FLOATS
from .tiles import _bf16_products, _sliced_products

# a unit's kernel for one slice, and for more
CUT_PRODUCTS = {"tiles": (_bf16_products, _sliced_products), "dots": (_bf16_dots, _sliced_dots)}


def cut_product(unit, x, weight, scales, diagonals, O, bias, activation, residual, gives=FLOATS):
    """norm.Cut (T, K) and panels of slices.pack_weights -> (T, O), on tiles or by dot products; a residual only to float32."""
    steps, slices = x.blocks.shape[1:3]
    kernel = CUT_PRODUCTS[unit][slices > 1]
    chunks, shape = chunks_of(x.shape[0], steps * slices * 64), (x.shape[0], O)
    given = {"slices": slices, "diagonals": diagonals, "steps": steps, "coarse": x.coarse, "config": amx.CONFIG}
    given |= {"row_scales": x.scales, "column_scales": scales}
    return run(kernel, x.blocks, weight, shape, chunks, bias, activation, residual, gives, **given)

"""The levels of precision that cut their operands: what each cuts them into, how many diagonals it keeps, what multiplies."""

from typing import Any, NamedTuple

from ..compiled import Kernel
from ..machine import amx
from ..operands import ROUNDED, THREE_DIGITS, TWO_DIGITS, Operand
from ..sizes import ROW
from .dots import bf16_dots, digit_dots
from .launch import chunks_of, run
from .outputs import GIVES_FLOAT32
from .tiles import bf16_tiles, digit_tiles


class Level(NamedTuple):
    """A row of the table. The second number of diagonals is for weights that have outliers or read them (CUTS in bitwise.py)."""

    operand: Operand
    diagonals: tuple[int, int]
    tiles: Kernel
    dots: Kernel


LEVELS = {
    "highest": Level(THREE_DIGITS, (3, 4), digit_tiles, digit_dots),
    "high": Level(TWO_DIGITS, (2, 3), digit_tiles, digit_dots),
    "medium": Level(ROUNDED, (1, 1), bf16_tiles, bf16_dots),
}
UNITS = ("tiles", "dots")
KERNELS = {(unit, level.operand): getattr(level, unit) for level in LEVELS.values() for unit in UNITS}


def cuts_of(precision: str, reproducible: bool) -> Any:
    """What most weights are cut into and how many diagonals are kept, and the same where there are outliers."""
    level = LEVELS["high" if reproducible and precision == "medium" else precision]
    return tuple((level.operand, diagonals) for diagonals in level.diagonals)


def cut_product(unit, x, weight, scales, diagonals, O, bias, activation, residual, gives=GIVES_FLOAT32):
    """Cut (T, K) and panels of pack_weights -> (T, O), on tiles or by dot products; a residual only to float32."""
    steps, slices = x.blocks.shape[1:3]
    chunks, shape = chunks_of(x.shape[0], steps * slices * ROW), (x.shape[0], O)
    given = {"slices": slices, "diagonals": diagonals, "steps": steps, "coarse": x.coarse, "config": amx.CONFIG}
    given |= {"row_scales": x.scales, "column_scales": scales}
    return run(KERNELS[unit, x.operand], x.blocks, weight, shape, chunks, bias, activation, residual, gives, **given)

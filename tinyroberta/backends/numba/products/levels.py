"""The levels of precision that cut their operands: what each cuts them into, how many diagonals it keeps, what multiplies."""

from typing import Any, NamedTuple

from ..compiled import Kernel
from ..machine import amx
from ..machine.features import BF16_DOTS
from ..operands import BF16, ROUNDED, THREE_DIGITS, TWO_DIGITS, Operand
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
    dots_win: bool = True  # over multiply-adds of float32; six products of digits do not


LEVELS = {
    "highest": Level(THREE_DIGITS, (3, 4), digit_tiles, digit_dots, dots_win=False),
    "high": Level(TWO_DIGITS, (2, 3), digit_tiles, digit_dots),
    "medium": Level(ROUNDED, (1, 1), bf16_tiles, bf16_dots),
}
UNITS = ("tiles", "dots")
KERNELS = {(unit, level.operand): getattr(level, unit) for level in LEVELS.values() for unit in UNITS}


def unit_of(path: str, precision: str, reproducible: bool = False) -> tuple[str, str]:
    """The unit that a path uses at a precision, and at which precision it does the products."""
    if reproducible:  # sums of digits' products, which every unit gives alike
        return {"amx": "tiles", "vnni": "dots"}.get(path, "digits"), precision
    if path == "vnni" and LEVELS[precision].dots_win:
        return "dots", "high" if LEVELS[precision].operand.kind == BF16 and not BF16_DOTS else precision
    return {"amx": "tiles", "vnni": "fma"}.get(path, path), precision


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

"""Sums of digits' products, an int32 for each diagonal, put together as float32."""

from ..compiled import carray, intrinsic, ir, njit, types
from ..machine.emit import I64, INTEGERS, LANES, broadcast, load_at
from ..machine.memory import bytes_, floats
from ..sizes import ROW, SUMS, TILE_ROWS


def combine_lanes(diagonals):
    """An intrinsic: 16 floats out = (c0 + (c1 2^-8 + ...)) (scale column_scales) + bias from 16 int32 of each diagonal.

    sum_row is the distance in bytes from a diagonal to the next; all else are addresses, but for scale.
    """

    @intrinsic
    def combine(typingctx, sums, sum_row, scale, column_scales, bias, out):
        def codegen(context, builder, signature, args):
            sums, sum_row, scale, column_scales, bias, out = args
            places = [builder.add(sums, builder.mul(sum_row, I64(n))) for n in range(diagonals)]
            terms = [builder.sitofp(load_at(builder, place, INTEGERS), LANES) for place in places]
            scaled = [
                builder.fmul(term, ir.Constant(LANES, [2.0 ** (-8 * n)] * 16)) if n else term for n, term in enumerate(terms)
            ]
            total = scaled.pop()
            while scaled:
                total = builder.fadd(scaled.pop(), total)
            factor = builder.fmul(broadcast(builder, scale), load_at(builder, column_scales))
            total = builder.fadd(builder.fmul(total, factor), load_at(builder, bias))
            builder.store(total, builder.inttoptr(out, LANES.as_pointer()), align=4)
            return context.get_dummy_value()

        words_ = [types.int64] * 3
        return types.void(types.int64, types.int64, types.float32, *words_), codegen

    return combine


combine_2, combine_3, combine_4 = combine_lanes(2), combine_lanes(3), combine_lanes(4)


@njit(error_model="numpy")
def combine(s, diagonals, given, rows, panel, height, bias, y):  # (height, diagonals, 32) int32 -> (height, 32)
    """A row's sums put together: as many diagonals as were asked for, one more where the row is coarse."""
    row_scales = carray(floats(given.row_scales + rows * TILE_ROWS * 4), TILE_ROWS)
    coarse = carray(bytes_(given.coarse + rows * TILE_ROWS), TILE_ROWS)
    for r in range(height):
        used, scale = diagonals if coarse[r] else given.diagonals, row_scales[r]
        for half in range(0, SUMS, ROW):
            sums, scales = s + r * diagonals * SUMS + half, given.column_scales + panel * SUMS + half
            if used == 2:
                combine_2(sums, SUMS, scale, scales, bias + half, y + r * SUMS + half)
            elif used == 3:
                combine_3(sums, SUMS, scale, scales, bias + half, y + r * SUMS + half)
            else:
                combine_4(sums, SUMS, scale, scales, bias + half, y + r * SUMS + half)


@njit(error_model="numpy")
def diagonals_of(given, rows):
    """How many diagonals of a block's sums are needed."""
    coarse = carray(bytes_(given.coarse + rows * TILE_ROWS), TILE_ROWS)
    more = False
    for r in range(TILE_ROWS):
        more |= coarse[r] != 0
    return given.diagonals + 1 if more and given.diagonals <= given.slices else given.diagonals

"""Products by dot products in registers (AVX-512): of 4 bytes in int32, of 2 bf16 in float32."""

import itertools
from functools import partial

from ..compiled import Kernel, cgutils, intrinsic, ir, njit, types
from ..machine.emit import I32, I64, INTEGERS, LANES, broadcast, load_at, prefetch_line
from ..machine.memory import allocate, free
from ..operands import DIGITS, ROUNDED, THREE_DIGITS, TWO_DIGITS
from ..paths import missing_dots
from ..sizes import BLOCK_SUMS, PANEL, ROW, SUMS, TILE, TILE_ROWS
from .outputs import CUT, add_held_bias, deliver, hold_bias
from .sums import combine, diagonals_of


def dot_block(rows, operand, diagonals, fetches=1):
    """An intrinsic: sums (rows, diagonals, 32) of a block's rows with a panel (operands.py), dot products of 4 bytes or 2 bf16.

    Sums of digits are int32, those of bf16 float32. A row's sums do not depend on `rows`. The instruction multiplies signed bytes
    by unsigned ones, so 128 is added to the weight's digits, by flipping a bit, and 128 times the row's digits taken off first.
    With every 4 bytes of a row so many cache lines from `ahead` on are fetched, and `ahead` moves by `pace` bytes.
    """
    slices, digits = operand.slices, operand.kind == DIGITS
    kind, name = (INTEGERS, "avx512.vpdpbusd.512") if digits else (LANES, "avx512bf16.dpbf16ps.512")

    def bytes_of_128():
        return ir.Constant(INTEGERS, [0x80808080 - 2**32] * 16)

    def dot(builder, total, weights, rows):
        dot_kind = ir.FunctionType(kind, [kind, INTEGERS, INTEGERS])
        return builder.call(cgutils.get_or_insert_function(builder.module, dot_kind, f"llvm.x86.{name}"), [total, weights, rows])

    def taken_off(builder, left, steps):  # -128 sum of a row's digits, for each row and slice
        totals = [[cgutils.alloca_once(builder, kind) for _ in range(slices)] for _ in range(rows)]
        places = [(totals[r][i], i * TILE + r * ROW) for r in range(rows) for i in range(slices)]
        for place, _ in places:
            builder.store(ir.Constant(kind, [0] * 16), place)
        with cgutils.for_range(builder, steps, intp=I64) as step:
            start = builder.add(left, builder.mul(step.index, I64(slices * TILE)))
            for place, offset in places:
                row = load_at(builder, builder.add(start, I64(offset)), kind)
                builder.store(dot(builder, builder.load(place), bytes_of_128(), row), place)
        add_up = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [kind]), "llvm.vector.reduce.add.v16i32")
        return [[builder.neg(builder.call(add_up, [builder.load(place)])) for place in row] for row in totals]

    @intrinsic
    def block(typingctx, sums, left, right, steps, ahead, pace):
        def codegen(context, builder, signature, args):
            sums, left, right, steps, ahead, pace = args
            places = [[[cgutils.alloca_once(builder, kind) for _ in range(2)] for _ in range(diagonals)] for _ in range(rows)]
            taken = taken_off(builder, left, steps) if digits else []
            for r, n, half in itertools.product(range(rows), range(diagonals), range(2)):
                start = ir.Constant(kind, [0 if digits else 0.0] * 16)
                for i in range(max(0, n - slices + 1), min(slices, n + 1)) if taken else ():
                    start = builder.add(start, broadcast(builder, taken[r][i], kind))
                builder.store(start, places[r][n][half])
            with cgutils.for_range(builder, steps, intp=I64) as step:
                start = builder.mul(step.index, I64(slices * TILE))
                with cgutils.for_range(builder, I64(ROW // 4), intp=I64) as quad:
                    fetched = builder.mul(builder.add(builder.mul(step.index, I64(ROW // 4)), quad.index), pace)
                    for line in range(fetches):
                        prefetch_line(builder, builder.add(builder.add(ahead, fetched), I64(ROW * line)))
                    a = builder.add(builder.add(left, start), builder.mul(quad.index, I64(4)))
                    b = builder.add(builder.add(right, builder.mul(start, I64(2))), builder.mul(quad.index, I64(ROW)))
                    for j in range(slices):
                        weights = [load_at(builder, builder.add(b, I64((2 * j + half) * TILE)), INTEGERS) for half in range(2)]
                        if digits:
                            weights = [builder.xor(weight, bytes_of_128()) for weight in weights]
                        for i, r in itertools.product(range(min(slices, diagonals - j)), range(rows)):
                            pointer = builder.inttoptr(builder.add(a, I64(i * TILE + r * ROW)), I32.as_pointer())
                            quads = broadcast(builder, builder.load(pointer, align=4), INTEGERS)
                            for half, weight in enumerate(weights):
                                place = places[r][i + j][half]
                                builder.store(dot(builder, builder.load(place), weight, quads), place)
            for r, n, half in itertools.product(range(rows), range(diagonals), range(2)):
                address = builder.add(sums, I64((r * diagonals + n) * SUMS + half * ROW))
                builder.store(builder.load(places[r][n][half]), builder.inttoptr(address, kind.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return block


dots_22, dots_23 = dot_block(4, TWO_DIGITS, 2), dot_block(4, TWO_DIGITS, 3)
dots_33, dots_34 = dot_block(4, THREE_DIGITS, 3), dot_block(2, THREE_DIGITS, 4)
dots_bf16, only_dots_bf16 = dot_block(8, ROUNDED, 1), dot_block(8, ROUNDED, 1, fetches=2)


@njit(error_model="numpy")
def to_fetch(given, first, last, panel, size, height):
    """The panel that this thread will read next, its end, and the pace at which blocks of `height` rows fetch it together."""
    following = panel + given.threads
    ahead = given.weight + following * size
    if following >= (given.O + PANEL - 1) // PANEL:
        return ahead, ahead, 0
    blocks = (min(last * TILE_ROWS, given.T) - first * TILE_ROWS + height - 1) // height
    return ahead, ahead + size, (size // (ROW // 4 * given.steps) - 1) // blocks + 1


@partial(Kernel, fields=CUT)
def digit_dots(given, block, worker):
    """Products of digits, to the same sums as the tiles', 4 rows at a time."""
    steps, panels, slices = given.steps, (given.O + PANEL - 1) // PANEL, given.slices
    chunk, panel = block // panels, block % panels
    first, last = chunk * given.chunk, min((chunk + 1) * given.chunk, (given.T + TILE_ROWS - 1) // TILE_ROWS)
    memory = allocate(5 * BLOCK_SUMS + SUMS + ROW)
    s = (memory + ROW - 1) // ROW * ROW
    size = steps * slices * 2 * TILE
    y, bias, right = s + 4 * BLOCK_SUMS, s + 5 * BLOCK_SUMS, given.weight + panel * size
    ahead, end, pace = to_fetch(given, first, last, panel, size, 4)
    pace = min(pace, ROW)
    hold_bias(bias, given, panel)
    for rows in range(first, last):
        height, diagonals = min(TILE_ROWS, given.T - rows * TILE_ROWS), diagonals_of(given, rows)
        for r in range(0, height, 4):
            sums, left = s + r * diagonals * SUMS, given.x + rows * steps * slices * TILE + r * ROW
            pace = pace if ahead < end else 0
            if slices == 3 and diagonals == 3:
                dots_33(sums, left, right, steps, ahead, pace)
            elif slices == 3:
                dots_34(sums, left, right, steps, ahead, pace)
                dots_34(sums + 2 * 4 * SUMS, left + 2 * ROW, right, steps, ahead, 0)
            elif diagonals == 2:
                dots_22(sums, left, right, steps, ahead, pace)
            else:
                dots_23(sums, left, right, steps, ahead, pace)
            ahead += pace * steps * (ROW // 4)
        combine(s, diagonals, given, rows, panel, height, bias, y)
        deliver(y, height, given, rows * TILE_ROWS, panel)
    free(memory)


@partial(Kernel, fields=CUT)
def bf16_dots(given, block, worker):
    """Products of bf16, 8 rows at a time."""
    steps, panels = given.steps, (given.O + PANEL - 1) // PANEL
    chunk, panel = block // panels, block % panels
    first, last = chunk * given.chunk, min((chunk + 1) * given.chunk, (given.T + TILE_ROWS - 1) // TILE_ROWS)
    memory = allocate(BLOCK_SUMS + SUMS + ROW)
    s = (memory + ROW - 1) // ROW * ROW
    right = given.weight + panel * steps * 2 * TILE
    ahead, end, pace = to_fetch(given, first, last, panel, steps * 2 * TILE, 8)
    hold_bias(s + BLOCK_SUMS, given, panel)
    for rows in range(first, last):
        height = min(TILE_ROWS, given.T - rows * TILE_ROWS)
        for r in range(0, height, 8):
            left, pace = given.x + rows * steps * TILE + r * ROW, pace if ahead < end else 0
            if pace > ROW:
                only_dots_bf16(s + r * SUMS, left, right, steps, ahead, pace)
            else:
                dots_bf16(s + r * SUMS, left, right, steps, ahead, pace)
            ahead += pace * steps * (ROW // 4)
        add_held_bias(s, height, s + BLOCK_SUMS)
        deliver(s, height, given, rows * TILE_ROWS, panel)
    free(memory)


digit_dots.missing, bf16_dots.missing = partial(missing_dots, False), partial(missing_dots, True)

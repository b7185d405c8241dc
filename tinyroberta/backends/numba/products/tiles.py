"""Products on the CPU's tile unit (AMX): of digits in int32, of bf16 in float32."""

from functools import partial

from ..compiled import Kernel, njit
from ..machine import amx
from ..machine.memory import allocate, free, prefetch
from ..sizes import BLOCK_SUMS, PANEL, ROW, SUMS, TILE, TILE_ROWS
from .outputs import CUT, add_held_bias, deliver, hold_bias
from .sums import combine, diagonals_of

zero_0, zero_1, zero_2, zero_3, zero_4, zero_5, zero_6, zero_7 = (amx.zero(t) for t in range(8))
store_0, store_1, store_2, store_3, store_4, store_5 = (amx.store(t) for t in range(6))
load_4, load_5, load_6, load_7 = (amx.load(t) for t in range(4, 8))
# dot_C adds the product of tiles 6 and 7 to tile C, dot_CAB that of tiles A and B
dot_0, dot_1, dot_2, dot_3, dot_4, dot_5 = (amx.dot_int8(t, 6, 7) for t in range(6))
dot_047, dot_147, dot_247, dot_157, dot_257, dot_357, dot_267, dot_367 = (
    amx.dot_int8(*t) for t in ((0, 4, 7), (1, 4, 7), (2, 4, 7), (1, 5, 7), (2, 5, 7), (3, 5, 7), (2, 6, 7), (3, 6, 7))
)
dot_046, dot_246, dot_256, dot_347 = (amx.dot_int8(*t) for t in ((0, 4, 6), (2, 4, 6), (2, 5, 6), (3, 4, 7)))
bf16_046, bf16_147, bf16_256, bf16_357 = (amx.dot_bf16(*t) for t in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)))


@njit(error_model="numpy")
def six(s, left, right, steps, ahead, lines):
    """Slices 3 x 3, diagonals 0 to 2: 16 x 32 sums in tiles 0 to 5."""
    zero_0(), zero_1(), zero_2(), zero_3(), zero_4(), zero_5()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * ROW)
        ahead += lines * ROW
        load_6(left, ROW)
        load_7(right, ROW), dot_0(), load_7(right + TILE, ROW), dot_1()
        load_7(right + 2 * TILE, ROW), dot_2(), load_7(right + 3 * TILE, ROW), dot_3()
        load_7(right + 4 * TILE, ROW), dot_4(), load_7(right + 5 * TILE, ROW), dot_5()
        load_6(left + TILE, ROW)
        load_7(right, ROW), dot_2(), load_7(right + TILE, ROW), dot_3()
        load_7(right + 2 * TILE, ROW), dot_4(), load_7(right + 3 * TILE, ROW), dot_5()
        load_6(left + 2 * TILE, ROW)
        load_7(right, ROW), dot_4(), load_7(right + TILE, ROW), dot_5()
        left, right = left + 3 * TILE, right + 6 * TILE
    store_0(s, 3 * SUMS), store_1(s + ROW, 3 * SUMS), store_2(s + 2 * ROW, 3 * SUMS)
    store_3(s + 3 * ROW, 3 * SUMS), store_4(s + 4 * ROW, 3 * SUMS), store_5(s + 5 * ROW, 3 * SUMS)


@njit(error_model="numpy")
def eight(s, left, right, steps, ahead, lines):
    """Slices 3 x 3, diagonals 0 to 3: 16 x 16 sums, one half of the panel after the other."""
    for half in range(2):
        a, b = left, right + half * TILE
        zero_0(), zero_1(), zero_2(), zero_3()
        for _ in range(steps):
            if half == 0:
                for line in range(lines):
                    prefetch(ahead + line * ROW)
                ahead += lines * ROW
            load_4(a, ROW), load_5(a + TILE, ROW), load_6(a + 2 * TILE, ROW)
            load_7(b, ROW), dot_047(), dot_157(), dot_267()
            load_7(b + 2 * TILE, ROW), dot_147(), dot_257(), dot_367()
            load_7(b + 4 * TILE, ROW), dot_247(), dot_357()
            a, b = a + 3 * TILE, b + 6 * TILE
        p = s + half * ROW
        store_0(p, 4 * SUMS), store_1(p + SUMS, 4 * SUMS), store_2(p + 2 * SUMS, 4 * SUMS), store_3(p + 3 * SUMS, 4 * SUMS)


@njit(error_model="numpy")
def three(s, left, right, steps, ahead, lines):
    """Slices 2 x 2, diagonals 0 and 1."""
    zero_0(), zero_1(), zero_2(), zero_3()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * ROW)
        ahead += lines * ROW
        load_4(left, ROW), load_5(left + TILE, ROW)
        load_6(right, ROW), dot_046(), dot_256(), load_7(right + TILE, ROW), dot_147(), dot_357()
        load_6(right + 2 * TILE, ROW), dot_246(), load_7(right + 3 * TILE, ROW), dot_347()
        left, right = left + 2 * TILE, right + 4 * TILE
    store_0(s, 2 * SUMS), store_1(s + ROW, 2 * SUMS), store_2(s + 2 * ROW, 2 * SUMS), store_3(s + 3 * ROW, 2 * SUMS)


@njit(error_model="numpy")
def four(s, left, right, steps, ahead, lines):
    """Slices 2 x 2, all of them: diagonals 0 to 2."""
    zero_0(), zero_1(), zero_2(), zero_3(), zero_4(), zero_5()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * ROW)
        ahead += lines * ROW
        load_6(left, ROW)
        load_7(right, ROW), dot_0(), load_7(right + TILE, ROW), dot_1()
        load_7(right + 2 * TILE, ROW), dot_2(), load_7(right + 3 * TILE, ROW), dot_3()
        load_6(left + TILE, ROW)
        load_7(right, ROW), dot_2(), load_7(right + TILE, ROW), dot_3()
        load_7(right + 2 * TILE, ROW), dot_4(), load_7(right + 3 * TILE, ROW), dot_5()
        left, right = left + 2 * TILE, right + 4 * TILE
    store_0(s, 3 * SUMS), store_1(s + ROW, 3 * SUMS), store_2(s + 2 * ROW, 3 * SUMS)
    store_3(s + 3 * ROW, 3 * SUMS), store_4(s + 4 * ROW, 3 * SUMS), store_5(s + 5 * ROW, 3 * SUMS)


@partial(Kernel, fields=CUT)
def digit_tiles(given, block, worker):
    """Products of digits, 16 rows at a time."""
    steps, panels, slices = given.steps, (given.O + PANEL - 1) // PANEL, given.slices
    chunk, panel = block // panels, block % panels
    first, last = chunk * given.chunk, min((chunk + 1) * given.chunk, (given.T + TILE_ROWS - 1) // TILE_ROWS)
    size = steps * slices * 2 * TILE
    following = panel + given.threads
    lines = (slices * 2 * TILE_ROWS - 1) // (last - first) + 1 if following < panels else 0
    ahead = given.weight + following * size
    memory = allocate(5 * BLOCK_SUMS + SUMS + ROW)
    s = (memory + ROW - 1) // ROW * ROW
    y, bias = s + 4 * BLOCK_SUMS, s + 5 * BLOCK_SUMS
    hold_bias(bias, given, panel)
    amx.configure(given.config)
    for rows in range(first, last):
        left, right, diagonals = given.x + rows * steps * slices * TILE, given.weight + panel * size, diagonals_of(given, rows)
        if slices == 3 and diagonals == 3:
            six(s, left, right, steps, ahead, lines)
        elif slices == 3:
            eight(s, left, right, steps, ahead, lines)
        elif diagonals == 2:
            three(s, left, right, steps, ahead, lines)
        else:
            four(s, left, right, steps, ahead, lines)
        ahead += lines * ROW * steps
        combine(s, diagonals, given, rows, panel, TILE_ROWS, bias, y)
        deliver(y, TILE_ROWS, given, rows * TILE_ROWS, panel)
    amx.release()
    free(memory)


@njit(error_model="numpy")
def multiply_bf16_tiles(s, left, below, right, steps, ahead, lines, parts, left_apart, right_apart):
    """(32, 32) sums of two blocks of 16 rows with a panel, in tiles 0 to 3; without a second block, `below` 0, its half is 0.

    Operands in parts lie `left_apart` and `right_apart` bytes from part to part. Of parts i and j those products are summed for
    which i + j < parts, the smallest first.
    """
    zero_0(), zero_1(), zero_2(), zero_3()
    for diagonal in range(parts - 1, -1, -1):
        for i in range(diagonal + 1):
            a, b = left + i * left_apart, right + (diagonal - i) * right_apart
            if below:
                c = below + i * left_apart
                for _ in range(steps):
                    for line in range(lines):
                        prefetch(ahead + line * ROW)
                    ahead += lines * ROW
                    load_4(a, ROW), load_6(b, ROW), bf16_046(), load_7(b + TILE, ROW), bf16_147()
                    load_5(c, ROW), bf16_256(), bf16_357()
                    a, b, c = a + TILE, b + 2 * TILE, c + TILE
            else:
                for _ in range(steps):
                    for line in range(lines):
                        prefetch(ahead + line * ROW)
                    ahead += lines * ROW
                    load_4(a, ROW), load_6(b, ROW), bf16_046(), load_7(b + TILE, ROW), bf16_147()
                    a, b = a + TILE, b + 2 * TILE
    store_0(s, SUMS), store_1(s + ROW, SUMS), store_2(s + BLOCK_SUMS, SUMS), store_3(s + BLOCK_SUMS + ROW, SUMS)


@partial(Kernel, fields=CUT)
def bf16_tiles(given, block, worker):
    """Products of bf16, 32 rows at a time."""
    steps, panels = given.steps, (given.O + PANEL - 1) // PANEL
    chunk, panel = block // panels, block % panels
    first, last = chunk * given.chunk, min((chunk + 1) * given.chunk, (given.T + TILE_ROWS - 1) // TILE_ROWS)
    size = steps * 2 * TILE
    following = panel + given.threads
    lines = (2 * TILE_ROWS - 1) // ((last - first + 1) // 2) + 1 if following < panels else 0
    ahead = given.weight + following * size
    memory = allocate(2 * BLOCK_SUMS + SUMS + ROW)
    s = (memory + ROW - 1) // ROW * ROW
    hold_bias(s + 2 * BLOCK_SUMS, given, panel)
    amx.configure(given.config)
    for rows in range(first, last, 2):
        left = given.x + rows * steps * TILE
        below = left + steps * TILE if rows + 1 < last else 0
        multiply_bf16_tiles(s, left, below, given.weight + panel * size, steps, ahead, lines, 1, 0, 0)
        ahead += lines * ROW * steps
        add_held_bias(s, 2 * TILE_ROWS, s + 2 * BLOCK_SUMS)
        deliver(s, 2 * TILE_ROWS, given, rows * TILE_ROWS, panel)
    amx.release()
    free(memory)


digit_tiles.missing = bf16_tiles.missing = amx.missing

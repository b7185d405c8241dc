"""The sizes of every kernel, in one place: how an operand and the sums of its products lie in memory.

A tile is the machine's (AMX, machine/amx.py), and on machines without tiles operands lie the same. Its row of 64 bytes is also a
line of the caches, a register of AVX-512 and 16 float32.
"""

TILE_ROWS = 16  # of a tile, and of a block
ROW = 64  # bytes of a tile's row
TILE = TILE_ROWS * ROW  # bytes
PANEL = 32  # outputs of a panel, which is two tiles wide
SUMS = 4 * PANEL  # bytes of a row of a panel's sums, int32 or float32
BLOCK_SUMS = TILE_ROWS * SUMS  # bytes of those of 16 rows

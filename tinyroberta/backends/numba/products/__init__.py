"""Matrix products, activation(x W^T + b) + residual, on the fastest unit that the machine has.

Digits, on tiles or by dot products of bytes: x (T, K) and W (O, K) are cut into slices (../cutting.py). The products of slices i
and j of one diagonal i + j add up exactly in int32, to c0 for diagonal 0 and so on, and
    y = (c0 + (c1 2^-8 + (c2 2^-16 + c3 2^-24))) (scale_row scale_column)    in float32, in that order
up to the last diagonal that is kept. Three slices make 6 products where diagonals 0 to 2 are kept, and 8 where 3 is too; two
slices make 3 or 4. A coarse row has one diagonal more than the rest, if no more diagonals than slices are kept.
bf16, on tiles or by dot products: one product, summed in float32. Multiply-adds: of float32, summed 256 products at a time.

A block of work is a panel of 32 outputs for a chunk of rows that stays in the second-level cache. Meanwhile the panel that this
thread will read next is fetched, since with few rows reading weights costs as much as multiplying. Inside, 16 x 32 sums stay in
tiles (all diagonals in one pass; 16 x 16 where there are four), or those of 2 to 8 rows in registers. A row's result does not
depend on where in a block it stands.

    tiles.py  dots.py  fma.py  blas.py    a file for each unit that multiplies
    sums.py                               sums of digits' products put together
    outputs.py                            bias, activation and residual; where the results go
    launch.py                             a product's kernel run over its blocks
    levels.py                             the table: a precision, its operand, its diagonals, its kernels
"""

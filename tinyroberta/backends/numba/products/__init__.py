"""Matrix products, activation(x W^T + b) + residual, on the fastest unit that the machine has.

Tiles or dot products of int8: x (T, K) and W (O, K) are cut into slices (../cutting.py); digit products of one diagonal i + j add
up exactly in int32, and
    y = (c0 + (c1 2^-8 + (c2 2^-16 + c3 2^-24))) (scale_row scale_column)    in float32, in that order
with as many diagonals as kept: three slices make 6 products with diagonals 0 to 2, 8 with 3; two slices 3 or 4. A row with
outliers has one diagonal more than the rest.
Of bf16: one product, float32 sums. FMA: float32 panels (O/32, K, 32), sums of 256 products at a time.

A block of work is a panel of 32 outputs for a chunk of rows that stays in the second-level cache; meanwhile the panel after the
next is fetched, since with few rows reading weights costs as much as multiplying. Inside, 16 x 32 sums stay in tiles (all
diagonals in one pass; 16 x 16 where there are four), or those of 2 to 8 rows in registers. A row's result does not depend on
where in a block it stands.

    tiles.py  dots.py  fma.py  blas.py    a file for each unit that multiplies
    sums.py                               sums of digits' products put together
    outputs.py                            bias, activation and residual; where the results go
    launch.py                             a product's kernel run over its blocks
    levels.py                             the table: a precision, its operand, its diagonals, its kernels
"""

// Rows of float32 as digits and scales, for linear_sliced: what they are stands in digits.cuh.
//
// x (rows, width) float, its rows `row` numbers apart; digits (rows, width / 64 rounded up, 3, 64) int8; scales (rows,) float.
// Launch: a warp a row, four rows a block: grid (rows / 4 rounded up), block (32, 4). V = 4 where width and `row` are multiples
// of 4, else 1.
#include "primitives.cuh"
#include "norm.cuh"
#include "cut.cuh"

template <int V>
__global__ void __launch_bounds__(128)
    cut_rows(const float* x, signed char* digits, float* scales, int rows, int width, i64 row) {
  int r = blockIdx.x * 4 + threadIdx.y;
  if (r >= rows) return;
  size_t size = (size_t)(width + CUT_STEP - 1) / CUT_STEP * CUT_BYTES;
  Stored<V> stored{x + r * row};
  auto take = [&](auto numbers) { cut<V>(numbers, digits + r * size, scales + r, width); };
  if (width <= Held<V, 8>::MOST)
    take(held<V, 8>(stored, width));
  else if (width <= Held<V, 32>::MOST)
    take(held<V, 32>(stored, width));
  else
    take(stored);
}

// Sums of rows in double, row after row, so that a sum is its own rows' alone and NumPy's to the bit.
//
// x: rows of `width` floats; part b is rows starts[b] to ends[b] - 1, at least one; y: a row of doubles a part.
// Launch: grid (parts, ceil(width / 128)), 128 threads, a column each.
#include "primitives.cuh"

__global__ void __launch_bounds__(128)
    sums(const float* __restrict__ x, const int* __restrict__ starts, const int* __restrict__ ends, double* __restrict__ y, int width) {
  int column = blockIdx.y * 128 + threadIdx.x;
  if (column >= width) return;
  const float* from = x + (i64)starts[blockIdx.x] * width + column;
  int rows = ends[blockIdx.x] - starts[blockIdx.x];
  double sum = 0;
#pragma unroll 8
  for (int row = 0; row < rows; row++) sum += from[(i64)row * width];
  y[(i64)blockIdx.x * width + column] = sum;
}

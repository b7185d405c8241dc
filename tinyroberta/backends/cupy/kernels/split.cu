// Float32 numbers as sums of three of bf16, exact to 24 bits, for attention_split.
//
// x: n floats; y: n first parts, n second, n third, each what is left rounded to bf16.
// Launch: a thread four numbers in steps of the grid: any grid of blocks of 256 threads; n is a multiple of 4.
#include "primitives.cuh"

__global__ void __launch_bounds__(256) split(const float* __restrict__ x, bf16* __restrict__ y, i64 n) {
  for (i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * 4; i < n; i += (i64)gridDim.x * 1024) {
    float left[4];
    load<4>(left, x + i);
#pragma unroll
    for (int p = 0; p < 3; p++) {
      store<4>(y + p * n + i, left);
#pragma unroll
      for (int j = 0; j < 4; j++) left[j] -= number(rounded<bf16>(left[j]));
    }
  }
}

// y = act(x w^T + bias) + residual in float32: the product that people read, and the route where cuBLASLt is absent.
//
// x (M, K), w (N, K), bias (N,), residual (M, N) or null, y (M, N), all float. gelu: the activation is the exact gelu, else none.
// A block makes a 64 x 64 tile of y, 16 columns of K at a time: both operands' columns are brought to shared memory once and read
// from there 64 times; a thread keeps a 4 x 4 piece of the tile in registers, so eight numbers read make sixteen products (the
// tiled product of the CUDA C++ Programming Guide, with register blocking as in Volkov and Demmel 2008).
// Launch: grid (N / 64, M / 64) rounded up, 256 threads.
#include "primitives.cuh"
#include "activation.cuh"

__global__ void __launch_bounds__(256)
    linear(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
           const float* __restrict__ residual, float* __restrict__ y, int M, int N, int K, int gelu) {
  constexpr int TILE = 64, DEPTH = 16;
  __shared__ float rows[DEPTH][TILE + 1], columns[DEPTH][TILE + 1];  // + 1: neighbours in a column fall into different banks
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16, m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < K; k0 += DEPTH) {
    for (int i = threadIdx.x; i < TILE * DEPTH; i += 256) {
      int r = i / DEPTH, k = i % DEPTH;
      bool inside = k0 + k < K;
      rows[k][r] = inside && m0 + r < M ? x[(size_t)(m0 + r) * K + k0 + k] : 0.f;
      columns[k][r] = inside && n0 + r < N ? w[(size_t)(n0 + r) * K + k0 + k] : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; k++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(rows[k][ty + 16 * i], columns[k][tx + 16 * j], sum[i][j]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
      if (m >= M || n >= N) continue;
      float value = sum[i][j] + bias[n];
      if (gelu) value = exact_gelu(value);
      y[(size_t)m * N + n] = residual ? value + residual[(size_t)m * N + n] : value;
    }
}

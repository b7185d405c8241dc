// y = act(x w^T + bias) + residual, float32-accurate, on the integer tensor cores: products of digits are exact (digits.cuh).
//
// x and w cut: digits (M, steps, 3, 64) and (N, steps, 3, 64) int8, scales (M,) and (N,); bias (N,) or null, residual (M, N) or
// null, y (M, N), all float. gelu: the activation is the exact gelu, else none. Products of the digits i and j of one diagonal
// i + j add up exactly in int32 while steps is at most 512, whatever their order; then in float32, to the bit:
//
//   y = (c0 + (c1 2^-8 + (c2 2^-16 + c3 2^-24))) (scale_row scale_column) + bias
//
// with as many of the five DIAGONALS as are kept: 3 (six products) or 4 (eight). A block makes a 128 x 64 tile of y, its eight
// warps 32 x 32 each, by mma.m16n8k32, and keeps the sums of all diagonals in registers: they never pass through memory. A step
// of 64 columns of K, all three digits of them, is copied (cp.async) while the one before is used; rows are 208 bytes apart,
// which spreads ldmatrix's eight rows over all banks.
// Launch: grid (N / 64, M / 128) rounded up, 256 threads, 79872 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "activation.cuh"
#include "digits.cuh"

template <int DIAGONALS>
__global__ void __launch_bounds__(256)
    linear_sliced(const signed char* __restrict__ x, const float* __restrict__ x_scales, const signed char* __restrict__ w,
                  const float* __restrict__ w_scales, const float* __restrict__ bias, const float* __restrict__ residual,
                  float* __restrict__ y, int M, int N, int steps, int gelu) {
  constexpr int ROWS = 128, COLUMNS = 64, PIECES = CUT_BYTES / 16, PITCH = CUT_BYTES + 16, STAGES = 2;
  extern __shared__ __align__(128) unsigned char shared[];
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, wm = warp % 4 * 32, wn = warp / 4 * 32;
  int m0 = blockIdx.y * ROWS, n0 = blockIdx.x * COLUMNS;
  int sum[DIAGONALS][2][4][4] = {};
  auto bring = [&](int stage, int step) {
    unsigned char* to = shared + stage * (ROWS + COLUMNS) * PITCH;
#pragma unroll
    for (int i = 0; i < (ROWS + COLUMNS) * PIECES / 256; i++) {
      int piece = thread + i * 256, r = piece / PIECES, c = piece % PIECES * 16;
      bool left = i < ROWS * PIECES / 256;
      int row = left ? min(m0 + r, M - 1) : min(n0 + r - ROWS, N - 1);  // what rows past the end give is not written
      fetch_16(to + r * PITCH + c, (left ? x : w) + ((size_t)row * steps + step) * CUT_BYTES + c, 16);
    }
  };
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) bring(s, s);
    fetch_commit();
  }
  for (int step = 0; step < steps; step++) {
    fetch_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) bring((step + STAGES - 1) % STAGES, step + STAGES - 1);
    fetch_commit();
    const unsigned char* rows = shared + step % STAGES * (ROWS + COLUMNS) * PITCH;
    const unsigned char* columns = rows + ROWS * PITCH;
#pragma unroll
    for (int k = 0; k < CUT_STEP; k += 32) {
      u32 a[2][4], b[3][2][4];
#pragma unroll
      for (int d = 0; d < 3; d++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          load_tiles<false>(b[d][j],
                            columns + (wn + j * 16 + lane % 8 + lane / 16 * 8) * PITCH + d * CUT_STEP + k + lane / 8 % 2 * 16);
#pragma unroll
      for (int d = 0; d < 3; d++) {
#pragma unroll
        for (int i = 0; i < 2; i++)
          load_tiles<false>(a[i], rows + (wm + i * 16 + lane % 16) * PITCH + d * CUT_STEP + k + lane / 16 * 16);
#pragma unroll
        for (int e = 0; e < 3 && d + e < DIAGONALS; e++)
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma(sum[d + e][i][j], a[i], b[e][j / 2][j % 2 * 2], b[e][j / 2][j % 2 * 2 + 1]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int m = m0 + wm + i * 16 + lane / 4 + e / 2 * 8, n = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
        if (m >= M || n >= N) continue;
        float scale = x_scales[m] * w_scales[n];
        float value = combined<DIAGONALS>([&](int d) { return sum[d][i][j][e]; }, scale, bias ? bias[n] : 0.f);
        if (gelu) value = exact_gelu(value);
        y[(size_t)m * N + n] = residual ? value + residual[(size_t)m * N + n] : value;
      }
}

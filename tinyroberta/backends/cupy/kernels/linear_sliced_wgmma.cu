// The product of linear_sliced.cu, to the same bits, on Hopper's tensor cores.
//
// A block makes a (64 GROUPS) x COLUMNS tile of y, a warpgroup 64 rows of it, and keeps the sums of all diagonals in registers:
// 192 a thread at the most, so that of four diagonals COLUMNS is 96 and of three 128. A step of 64 columns of K, all three digits
// of them, lies in shared memory as tiles of 64-byte rows; of STAGES steps two are multiplied while the others are copied
// (cp.async).
// Launch: grid (N / COLUMNS, M / (64 GROUPS)) rounded up, 128 GROUPS threads, STAGES * 3 * (64 GROUPS + COLUMNS) * 64 + 8 * COLUMNS
// bytes of dynamic shared memory.
#include "primitives.cuh"
#include "wgmma.cuh"
#include "activation.cuh"
#include "digits.cuh"

template <int DIAGONALS, int GROUPS, int COLUMNS, int STAGES>
__global__ void __launch_bounds__(GROUPS * 128, 1)
    linear_sliced_wgmma(const signed char* __restrict__ x, const float* __restrict__ x_scales, const signed char* __restrict__ w,
                        const float* __restrict__ w_scales, const float* __restrict__ bias, const float* __restrict__ residual,
                        float* __restrict__ y, int M, int N, int steps, int gelu) {
  constexpr int ROWS = GROUPS * 64;
  constexpr int X = ROWS * CUT_STEP, W = COLUMNS * CUT_STEP, STAGE = 3 * (X + W);  // a digit's tile of x, of w; all three of both
  extern __shared__ __align__(1024) unsigned char shared[];
  float *scale_of = reinterpret_cast<float*>(shared + STAGES * STAGE), *shift_of = scale_of + COLUMNS;  // the tile's columns'
  int thread = threadIdx.x, lane = thread % 32, group = thread / 128;
  int m0 = blockIdx.y * ROWS, n0 = blockIdx.x * COLUMNS;
  int sum[DIAGONALS][COLUMNS / 2] = {};
  int r = thread / 4, c = thread % 4;  // a thread copies the 16-byte piece c of every 32 GROUPS-th row, of each digit
  auto row_of = [&](const signed char* from, int row, int rows) {  // what rows past the end give is not written
    return from + (size_t)min(row, rows - 1) * steps * CUT_BYTES + c * 16;
  };
  constexpr int EVERY = GROUPS * 32, LEFT = ROWS / EVERY, RIGHT = (COLUMNS + EVERY - 1) / EVERY;
  const signed char* from[LEFT + RIGHT];
  for (int i = 0; i < LEFT; i++) from[i] = row_of(x, m0 + r + i * EVERY, M);
  for (int i = 0; i < RIGHT; i++) from[LEFT + i] = row_of(w, n0 + r + i * EVERY, N);
  auto bring = [&](int step) {
    if (step < steps) {
      unsigned char* to = shared + step % STAGES * STAGE + swizzled<CUT_STEP>(r, c);
#pragma unroll
      for (int digit = 0; digit < 3; digit++) {
        int at = step * CUT_BYTES + digit * CUT_STEP;
#pragma unroll
        for (int i = 0; i < LEFT; i++) fetch_16(to + digit * X + i * EVERY * CUT_STEP, from[i] + at, 16);
#pragma unroll
        for (int i = 0; i < RIGHT; i++)
          if (COLUMNS % EVERY == 0 || r + i * EVERY < COLUMNS)
            fetch_16(to + 3 * X + digit * W + i * EVERY * CUT_STEP, from[LEFT + i] + at, 16);
      }
    }
    fetch_commit();
  };
  for (int s = 0; s < STAGES - 2; s++) bring(s);
  int rows_of[2];
  float x_scale[2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    rows_of[k] = m0 + thread / 32 * 16 + lane / 4 + k * 8;
    x_scale[k] = x_scales[min(rows_of[k], M - 1)];
  }
  if (thread < COLUMNS) {
    int n = min(n0 + thread, N - 1);
    scale_of[thread] = w_scales[n], shift_of[thread] = bias ? bias[n] : 0.f;
  }
  for (int step = 0; step < steps; step++) {
    fetch_wait<STAGES - 3>();
    copies_to_products();
    __syncthreads();  // this step is here for all, and all have done with the step before the last
    bring(step + STAGES - 2);
    const unsigned char* rows = shared + step % STAGES * STAGE + group * 64 * CUT_STEP;
    const unsigned char* columns = shared + step % STAGES * STAGE + 3 * X;
    products_begin();
#pragma unroll
    for (int k = 0; k < CUT_STEP; k += 32)
#pragma unroll
      for (int d = 0; d < 3; d++)
#pragma unroll
        for (int e = 0; e < 3 && d + e < DIAGONALS; e++)
          product<COLUMNS>(sum[d + e], described<CUT_STEP>(rows + d * X + k), described<CUT_STEP>(columns + e * W + k));
    products_commit();
    products_wait<1>();
  }
  products_wait<0>();
#pragma unroll
  for (int d = 0; d < DIAGONALS; d++) settled(sum[d]);
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; j++) {
    int column = j * 8 + lane % 4 * 2, n = n0 + column;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      size_t row = (size_t)min(rows_of[k], M - 1) * N;
      float value[2], added[2] = {};
      if (residual && N % 2 == 0) {
        float2 pair = *reinterpret_cast<const float2*>(residual + row + min(n, N - 2));
        added[0] = pair.x, added[1] = pair.y;
      } else if (residual) {
        for (int e = 0; e < 2; e++) added[e] = residual[row + min(n + e, N - 1)];
      }
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float scale = x_scale[k] * scale_of[column + e];
        value[e] = combined<DIAGONALS>([&](int d) { return sum[d][j * 4 + k * 2 + e]; }, scale, shift_of[column + e]);
        if (gelu) value[e] = exact_gelu(value[e]);
        if (residual) value[e] += added[e];
      }
      bool there = rows_of[k] < M && n < N;
      if (N % 2 == 0) {
        if (there) *reinterpret_cast<float2*>(y + row + n) = make_float2(value[0], value[1]);
      } else {
        if (there) y[row + n] = value[0];
        if (there && n + 1 < N) y[row + n + 1] = value[1];
      }
    }
  }
}

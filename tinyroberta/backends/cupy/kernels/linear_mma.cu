// y = act(x w^T + bias) + residual on the tensor cores: operands of T, float32 sums.
//
// x (M, K), w (N, K) of T, bf16 or f16; bias (N,) and y (M, N) of type Out, T or float; residual (M, N) float or null. gelu:
// the activation is the exact gelu, else none. A block makes a 128 x 128 tile of y, its eight warps 64 x 32 each, by
// mma.m16n8k16. Operands stream through three stages of shared memory, 32 columns of K each, so that two copies (cp.async) are
// under way while one is used; rows are 40 numbers apart, which spreads ldmatrix's eight rows over all banks (the multistage
// pipeline of CUTLASS 2, Kerr et al.; PTX ISA, mma.m16n8k16, ldmatrix).
// Launch: grid (N / 128, M / 128) rounded up, 256 threads, 61440 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "activation.cuh"

template <class T, class Out>
__global__ void __launch_bounds__(256)
    linear_mma(const T* __restrict__ x, const T* __restrict__ w, const Out* __restrict__ bias,
               const float* __restrict__ residual, Out* __restrict__ y, int M, int N, int K, int gelu) {
  constexpr int TILE = 128, DEPTH = 32, PITCH = DEPTH + 8, STAGES = 3;
  extern __shared__ __align__(128) unsigned char shared[];
  T* stages = reinterpret_cast<T*>(shared);
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, wm = warp % 2 * 64, wn = warp / 2 * 32;
  int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  bool aligned = K % 8 == 0 && ((size_t)x | (size_t)w) % 16 == 0;
  float sum[4][4][4] = {};
  auto bring = [&](int stage, int k0) {
    T* rows = stages + stage * 2 * TILE * PITCH;
    T* columns = rows + TILE * PITCH;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int piece = thread + i * 256, r = piece / 4, c = piece % 4 * 8, m = m0 + r, n = n0 + r;
      bool left = k0 + c < K;
      fetch(rows + r * PITCH + c, left && m < M ? x + (size_t)m * K + k0 + c : x, m < M ? K - k0 - c : 0, aligned);
      fetch(columns + r * PITCH + c, left && n < N ? w + (size_t)n * K + k0 + c : w, n < N ? K - k0 - c : 0, aligned);
    }
  };
  int steps = (K + DEPTH - 1) / DEPTH;
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) bring(s, s * DEPTH);
    fetch_commit();
  }
  for (int step = 0; step < steps; step++) {
    fetch_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) bring((step + STAGES - 1) % STAGES, (step + STAGES - 1) * DEPTH);
    fetch_commit();
    const T* rows = stages + step % STAGES * 2 * TILE * PITCH;
    const T* columns = rows + TILE * PITCH;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      u32 a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) load_tiles<false>(a[i], rows + (wm + i * 16 + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < 2; j++)
        load_tiles<false>(b[j], columns + (wn + j * 16 + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma<T>(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int m = m0 + wm + i * 16 + lane / 4 + e / 2 * 8, n = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
        if (m >= M || n >= N) continue;
        float value = sum[i][j][e] + number(bias[n]);
        if (gelu) value = exact_gelu(value);
        if (residual) value += residual[(size_t)m * N + n];
        y[(size_t)m * N + n] = rounded<Out>(value);
      }
}

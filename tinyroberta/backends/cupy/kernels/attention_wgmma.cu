// softmax(q k^T / sqrt(d)) v on Hopper's tensor cores: operands of T, float32 scores, softmax and sums; d = 64.
//
// q, k, v, y of T, bf16 or f16, their rows at multiples of 16 bytes; everything else as in attention_mma.cu, but that tiles are of
// 128 queries and that there is no bias and no head_mask. Two warpgroups have 64 queries each and share the keys, 64 a step. While
// a step's values are multiplied, the next step's scores become probabilities (FlashAttention-3: Shah et al. 2024, without its
// producer warps: two blocks a multiprocessor take turns).
// Launch: grid (tiles, H), 256 threads, 3 * 2 * 64 * 128 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "wgmma.cuh"
#include "attention.cuh"

template <class T>
__global__ void __launch_bounds__(256, 2) attention_wgmma(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                                          T* __restrict__ y, ATTENTION_ARGUMENTS) {
  constexpr int D = 64, KEYS = 64, ROW = 128, TILE = KEYS * ROW, STAGES = 3;
  extern __shared__ __align__(1024) unsigned char shared[];
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y;
  if (b < 0) return;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b], before = keys - queries;
  int thread = threadIdx.x, lane = thread % 32, group = thread / 128, row0 = q0 + thread / 32 * 16 + lane / 4;
  int r = thread / 8, c = thread % 8;  // a thread copies the 16-byte piece c of every 32nd row
  auto bring = [&](unsigned char* to, const T* from, i64 row, int rows, auto count) {  // 32 times `count` rows
#pragma unroll
    for (int i = 0; i < count.value; i++) {
      bool inside = r + i * 32 < rows;
      fetch_16(to + swizzled<ROW>(r, c) + i * 32 * ROW, inside ? from + (r + i * 32) * row + c * 8 : from, inside ? 16 : 0);
    }
  };
  size_t base = b * key_batch + h * key_head + key_start[b] * key_row;
  int seen = causal ? min(keys, before + min(q0 + 128, queries)) : keys, steps = (seen + KEYS - 1) / KEYS;
  auto bring_keys = [&](int step) {
    if (step < steps) {
      unsigned char* to = shared + step % STAGES * 2 * TILE;
      size_t at = base + (size_t)step * KEYS * key_row;
      bring(to, k + at, key_row, keys - step * KEYS, Count<2>{});
      bring(to + TILE, v + at, key_row, keys - step * KEYS, Count<2>{});
    }
    fetch_commit();
  };
  unsigned char* last = shared + (STAGES - 1) * 2 * TILE;
  bring(last, q + (size_t)(first + q0) * query_row + h * D, query_row, queries - q0, Count<4>{});
  fetch_commit();
  bring_keys(0);
  bring_keys(1);
  fetch_wait<1>();
  copies_to_products();
  __syncthreads();  // the queries and the first keys are here
  u32 query[D / 16][4];
#pragma unroll
  for (int c = 0; c < D / 16; c++) load_tiles<false>(query[c], last + swizzled<ROW>(thread / 32 * 16 + lane % 16, c * 2 + lane / 16));
  auto score = [&](float(&to)[KEYS / 2], int step) {
    const unsigned char* rows = shared + step % STAGES * 2 * TILE;
#pragma unroll
    for (int c = 0; c < D / 16; c++) product<T, false>(to, query[c], described<ROW>(rows + c * 32), c > 0);
    products_commit();
  };
  float s[KEYS / 2], sum[D / 2], largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {};
  u32 p[KEYS / 16][4];
  float unit = scale * 1.4426950408889634f;  // exp(x scale) = 2^(x unit)
  products_begin();
  score(s, 0);
  products_wait<0>(s);
  for (int step = 0; step < steps; step++) {
    float fade[2];
    if ((step + 1) * KEYS > keys || (causal && (step + 1) * KEYS > before + q0 + group * 64)) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++) {
        int key = step * KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (key >= keys || (causal && key > before + row0 + i / 2 % 2 * 8)) s[i] = NEGATIVE_INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float top = largest[r];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) top = fmaxf(top, fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 2));
      float shift = top == NEGATIVE_INFINITY ? 0.f : top * unit;
      fade[r] = power_of_2(fmaf(largest[r], unit, -shift));
      largest[r] = top;
      total[r] *= fade[r];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) total[r] += s[j * 4 + r * 2 + e] = power_of_2(fmaf(s[j * 4 + r * 2 + e], unit, -shift));
    }
    products_wait<0>(sum);  // of the step before
#pragma unroll
    for (int c = 0; c < KEYS / 16; c++)
#pragma unroll
      for (int r = 0; r < 4; r++) p[c][r] = packed<T>(s[c * 8 + r * 2], s[c * 8 + r * 2 + 1]);
    if (step) {
#pragma unroll
      for (int i = 0; i < D / 2; i++) sum[i] *= fade[i / 2 % 2];
    }
    fetch_wait<0>();
    copies_to_products();
    __syncthreads();  // the next keys are here for all, and all have done with the values of the step before
    bring_keys(step + 2);
    products_begin();
    if (step + 1 < steps) score(s, step + 1);
    const unsigned char* values = shared + step % STAGES * 2 * TILE + TILE;
#pragma unroll
    for (int c = 0; c < KEYS / 16; c++) product<T, true>(sum, p[c], described<ROW>(values + c * 16 * ROW), step || c);
    products_commit();
    products_wait<1>(s);
  }
  products_wait<0>(sum);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = row0 + r * 8;
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 1);
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 2);
    if (row >= queries) continue;
    T* to = y + ((size_t)(first + row) * gridDim.y + h) * D + lane % 4 * 2;
    float part = 1.f / total[r];
#pragma unroll
    for (int j = 0; j < D / 8; j++)
      *reinterpret_cast<u32*>(to + j * 8) = packed<T>(sum[j * 4 + r * 2] * part, sum[j * 4 + r * 2 + 1] * part);
  }
}

// softmax(q k^T / sqrt(d)) v, float32-accurate, on Hopper's tensor cores: every number is the sum of three of bf16; d = 64.
//
// q, k, v of bf16: the first parts, the second `part` numbers after them, the third after those, exact to 24 bits (split.cu). Of the
// nine products of parts the six largest are taken, the small ones first, since the tensor cores cut off what they add; for the
// same reason each step's values are added up apart, and the steps in float32 (Ootomo and Yokota 2022). y (Tq, H 64) float.
// Everything else as in attention_wgmma.cu.
// Launch: grid (tiles, H), 256 threads, 3 * 6 * 64 * 128 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "wgmma.cuh"
#include "attention.cuh"

// sums (64 x 64) = a b, a and b in three parts each.
template <bool DOWN>
__device__ __forceinline__ void product_of_parts(float (&sums)[32], const u32 (&a)[3][4][4], const unsigned char* b) {
  constexpr int TILE = 64 * 128, ALONG = DOWN ? 16 * 128 : 32;
#pragma unroll
  for (int order = 2; order >= 0; order--)
#pragma unroll
    for (int i = 0; i <= order; i++)
#pragma unroll
      for (int c = 0; c < 4; c++)
        product<bf16, DOWN>(sums, a[i][c], described<128>(b + (order - i) * TILE + c * ALONG), order < 2 || i || c);
}

__global__ void __launch_bounds__(256, 1) attention_split(const bf16* __restrict__ q, const bf16* __restrict__ k,
                                                          const bf16* __restrict__ v, i64 part, float* __restrict__ y,
                                                          ATTENTION_ARGUMENTS) {
  constexpr int D = 64, KEYS = 64, ROW = 128, TILE = KEYS * ROW, STAGES = 3;
  extern __shared__ __align__(1024) unsigned char shared[];
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y;
  if (b < 0) return;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b], before = keys - queries;
  int thread = threadIdx.x, lane = thread % 32, group = thread / 128, row0 = q0 + thread / 32 * 16 + lane / 4;
  int r = thread / 8, c = thread % 8;  // a thread copies the 16-byte piece c of every 32nd row
  auto bring = [&](unsigned char* to, const bf16* from, i64 row, int rows, auto count) {  // 32 times `count` rows of each part
#pragma unroll
    for (int i = 0; i < count.value; i++) {
      bool inside = r + i * 32 < rows;
      const bf16* piece = inside ? from + (r + i * 32) * row + c * 8 : from;
#pragma unroll
      for (int p = 0; p < 3; p++)
        fetch_16(to + p * count.value * 32 * ROW + swizzled<ROW>(r, c) + i * 32 * ROW, piece + p * part, inside ? 16 : 0);
    }
  };
  size_t base = b * key_batch + h * key_head + key_start[b] * key_row;
  int seen = causal ? min(keys, before + min(q0 + 128, queries)) : keys, steps = (seen + KEYS - 1) / KEYS;
  auto bring_keys = [&](int step) {
    if (step < steps) {
      unsigned char* to = shared + step % STAGES * 6 * TILE;
      size_t at = base + (size_t)step * KEYS * key_row;
      bring(to, k + at, key_row, keys - step * KEYS, Count<2>{});
      bring(to + 3 * TILE, v + at, key_row, keys - step * KEYS, Count<2>{});
    }
    fetch_commit();
  };
  unsigned char* last = shared + (STAGES - 1) * 6 * TILE;
  bring(last, q + (size_t)(first + q0) * query_row + h * D, query_row, queries - q0, Count<4>{});
  fetch_commit();
  bring_keys(0);
  bring_keys(1);
  fetch_wait<1>();
  copies_to_products();
  __syncthreads();  // the queries and the first keys are here
  u32 query[3][D / 16][4];
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int c = 0; c < D / 16; c++)
      load_tiles<false>(query[i][c], last + i * 2 * TILE + swizzled<ROW>(thread / 32 * 16 + lane % 16, c * 2 + lane / 16));
  float s[KEYS / 2], added[D / 2], sum[D / 2] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {};
  u32 p[3][KEYS / 16][4];
  float unit = scale * 1.4426950408889634f;  // exp(x scale) = 2^(x unit)
  products_begin();
  product_of_parts<false>(s, query, shared);
  products_commit();
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
    products_wait<0>(added);  // of the step before
    if (step) {
#pragma unroll
      for (int i = 0; i < D / 2; i++) sum[i] = (sum[i] + added[i]) * fade[i / 2 % 2];
    }
#pragma unroll
    for (int c = 0; c < KEYS / 16; c++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        float x = s[c * 8 + r * 2], z = s[c * 8 + r * 2 + 1];
#pragma unroll
        for (int i = 0; i < 3; i++) {
          p[i][c][r] = packed<bf16>(x, z);
          x -= __uint_as_float(p[i][c][r] << 16), z -= __uint_as_float(p[i][c][r] & 0xffff0000u);
        }
      }
    fetch_wait<0>();
    copies_to_products();
    __syncthreads();  // the next keys are here for all, and all have done with the values of the step before
    bring_keys(step + 2);
    products_begin();
    if (step + 1 < steps) product_of_parts<false>(s, query, shared + (step + 1) % STAGES * 6 * TILE);
    products_commit();
    product_of_parts<true>(added, p, shared + step % STAGES * 6 * TILE + 3 * TILE);
    products_commit();
    products_wait<1>(s);
  }
  products_wait<0>(added);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = row0 + r * 8;
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 1);
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 2);
    if (row >= queries) continue;
    float* to = y + ((size_t)(first + row) * gridDim.y + h) * D + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      int i = j * 4 + r * 2;
      *reinterpret_cast<float2*>(to + j * 8) = make_float2((sum[i] + added[i]) / total[r], (sum[i + 1] + added[i + 1]) / total[r]);
    }
  }
}

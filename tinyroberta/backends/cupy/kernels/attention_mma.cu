// softmax(q k^T / sqrt(d) + bias) v on the tensor cores: operands of T, float32 scores, softmax and sums.
//
// q, k, v, y of T, bf16 or f16; everything else as in attention.cu, whose algorithm this is (FlashAttention: Dao et al.
// 2022; the warps share queries and not keys, as in FlashAttention-2: Dao 2023). Four warps have 16 queries each, with all 64
// keys of a step: the scores' registers are, packed to T, the operand of the second product, so probabilities never pass
// through memory. Keys and values of the next step are under way (cp.async) while this one's are used.
// Launch: grid (tiles, H), 128 threads, 4 * 64 * (D + 8) * 2 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "attention.cuh"

template <class T, int D, bool SPREAD>
__global__ void __launch_bounds__(128, 2) attention_mma(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                                        T* __restrict__ y, ATTENTION_ARGUMENTS) {
  constexpr int QUERIES = 64, KEYS = 64, PITCH = D + 8;
  extern __shared__ __align__(128) unsigned char shared[];
  T* stages = reinterpret_cast<T*>(shared);  // two of keys and values
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y;
  if (b < 0) return;
  SPREADS;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b], before = keys - queries;
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  size_t base = b * key_batch + h * key_head + key_start[b] * key_row;
  i64 steps = size | query_row | key_batch | key_head | key_row;  // a multiple of 8 if all are
  bool aligned = steps % 8 == 0 && ((size_t)q | (size_t)k | (size_t)v) % 16 == 0;
  auto bring = [&](T* to, const T* from, i64 row, int rows) {  // `rows` rows of `size` numbers as 64 of D
    for (int i = thread; i < 64 * (D / 8); i += 128) {
      int r = i / (D / 8), c = i % (D / 8) * 8;
      bool inside = r < rows && c < size;
      fetch(to + r * PITCH + c, inside ? from + r * row + c : from, inside ? size - c : 0, aligned);
    }
  };
  auto bring_keys = [&](int stage, int k0) {
    T* to = stages + stage * 2 * KEYS * PITCH;
    bring(to, k + base + k0 * key_row, key_row, keys - k0);
    bring(to + KEYS * PITCH, v + base + k0 * key_row, key_row, keys - k0);
  };
  T* last_stage = stages + 2 * KEYS * PITCH;
  bring(last_stage, q + (size_t)(first + q0) * query_row + h * size, query_row, queries - q0);
  fetch_commit();
  fetch_wait<0>();
  __syncthreads();
  u32 query[D / 16][4];
#pragma unroll
  for (int c = 0; c < D / 16; c++)
    load_tiles<false>(query[c], last_stage + (warp * 16 + lane % 16) * PITCH + c * 16 + lane / 16 * 8);
  float sum[D / 8][4] = {}, largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {};
  int seen = causal ? min(keys, before + min(q0 + QUERIES, queries)) : keys;
  bring_keys(0, 0);
  fetch_commit();
  for (int k0 = 0, stage = 0; k0 < seen; k0 += KEYS, stage ^= 1) {
    fetch_wait<0>();
    __syncthreads();  // this step's keys are here for all, and the other stage has been read by all
    if (k0 + KEYS < seen) bring_keys(stage ^ 1, k0 + KEYS);
    fetch_commit();
    const T* sk = stages + stage * 2 * KEYS * PITCH;
    const T* sv = sk + KEYS * PITCH;
    float score[8][4] = {};
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 tile[4];
        load_tiles<false>(tile, sk + (j * 16 + lane % 8 + lane / 16 * 8) * PITCH + c * 16 + lane / 8 % 2 * 8);
        mma<T>(score[2 * j], query[c], tile[0], tile[1]);
        mma<T>(score[2 * j + 1], query[c], tile[2], tile[3]);
      }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      int row = q0 + warp * 16 + lane / 4 + r * 8;
      float top = largest[r];
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int key = k0 + j * 8 + lane % 4 * 2 + e;
          bool read = row < queries && key < keys && (!causal || key <= before + row);
          float& s = score[j][r * 2 + e];
          s = read ? s * scale + (SPREAD ? added(b, h, row, key, 0.f) : 0.f) : NEGATIVE_INFINITY;
          top = fmaxf(top, s);
        }
      top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 2));
      float shift = top == NEGATIVE_INFINITY ? 0.f : top, fade = __expf(largest[r] - shift);
      largest[r] = top;
      total[r] *= fade;
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int key = k0 + j * 8 + lane % 4 * 2 + e;
          float& s = score[j][r * 2 + e];
          s = __expf(s - shift);
          total[r] += s;
          if (SPREAD && row < queries && key < keys) s *= kept(b, h, row, key, 1.f);
        }
#pragma unroll
      for (int j = 0; j < D / 8; j++) sum[j][r * 2] *= fade, sum[j][r * 2 + 1] *= fade;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
      u32 p[4] = {packed<T>(score[2 * c][0], score[2 * c][1]), packed<T>(score[2 * c][2], score[2 * c][3]),
                  packed<T>(score[2 * c + 1][0], score[2 * c + 1][1]), packed<T>(score[2 * c + 1][2], score[2 * c + 1][3])};
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        u32 tile[4];
        load_tiles<true>(tile, sv + (c * 16 + lane % 16) * PITCH + j * 16 + lane / 16 * 8);
        mma<T>(sum[2 * j], p, tile[0], tile[1]);
        mma<T>(sum[2 * j + 1], p, tile[2], tile[3]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = q0 + warp * 16 + lane / 4 + r * 8;
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 1);
    total[r] += __shfl_xor_sync(WHOLE_WARP, total[r], 2);
    if (row >= queries) continue;
    T* to = y + ((size_t)(first + row) * gridDim.y + h) * size;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int c = j * 8 + lane % 4 * 2 + e;
        if (c < size) to[c] = rounded<T>(sum[j][r * 2 + e] / total[r]);
      }
  }
}

// softmax(q k^T / sqrt(d) + bias) v in float32, each sequence and head for itself, and the scores never leave the chip.
//
// q, y (Tq, H d) with `query_row` numbers from a row of q to the next (y is dense); k, v, bias, head_mask: attention.cuh. tiles
// (tiles, 2) int32: a sequence and its first query of 64, a sequence below 0 for none. A block takes 64 queries and 32 keys at a
// time, and keeps for every query the largest score so far, the sum of the exponentials under it and the sum of values weighed by
// them; a larger score scales both sums down (online softmax: Milakov and Gimelshein 2018, FlashAttention: Dao et al. 2022). A
// thread has 4 queries with 2 keys, then with D / 16 numbers of the values. D: d padded by zeros.
// SPREAD: there is a bias or a head_mask.
// Launch: grid (tiles, H), 256 threads, (64 + 2 * 32) * (D + 1) * 4 + 64 * 33 * 4 bytes of dynamic shared memory.
#include "primitives.cuh"
#include "attention.cuh"

template <int D, bool SPREAD>
__global__ void __launch_bounds__(256, 2) attention(const float* __restrict__ q, const float* __restrict__ k,
                                                    const float* __restrict__ v, float* __restrict__ y, ATTENTION_ARGUMENTS) {
  constexpr int QUERIES = 64, KEYS = 32, PITCH = D + 1, WEIGHTS = KEYS + 1;
  extern __shared__ float shared[];
  float *sq = shared, *sk = sq + QUERIES * PITCH, *sv = sk + KEYS * PITCH, *sp = sv + KEYS * PITCH;
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y;
  if (b < 0) return;
  SPREADS;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b], before = keys - queries;
  const float* from = q + (size_t)(first + q0) * query_row + h * size;
  size_t base = b * key_batch + h * key_head + key_start[b] * key_row;
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  for (int i = threadIdx.x; i < QUERIES * D; i += 256) {
    int r = i / D, c = i % D;
    sq[r * PITCH + c] = q0 + r < queries && c < size ? from[r * query_row + c] : 0.f;
  }
  float sum[4][D / 16] = {}, largest[4], total[4] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) largest[i] = NEGATIVE_INFINITY;
  int seen = causal ? min(keys, before + min(q0 + QUERIES, queries)) : keys;
  for (int k0 = 0; k0 < seen; k0 += KEYS) {
    __syncthreads();
    for (int i = threadIdx.x; i < KEYS * D; i += 256) {
      int r = i / D, c = i % D;
      bool inside = k0 + r < keys && c < size;
      size_t at = base + (k0 + r) * key_row + c;
      sk[r * PITCH + c] = inside ? k[at] : 0.f;
      sv[r * PITCH + c] = inside ? v[at] : 0.f;
    }
    __syncthreads();
    float score[4][2] = {};
#pragma unroll 8
    for (int c = 0; c < D; c++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) score[i][j] = fmaf(sq[(ty + 16 * i) * PITCH + c], sk[(tx + 16 * j) * PITCH + c], score[i][j]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int row = q0 + ty + 16 * i;
      float top = largest[i];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int key = k0 + tx + 16 * j;
        bool read = row < queries && key < keys && (!causal || key <= before + row);
        score[i][j] = read ? score[i][j] * scale + (SPREAD ? added(b, h, row, key, 0.f) : 0.f) : NEGATIVE_INFINITY;
        top = fmaxf(top, score[i][j]);
      }
#pragma unroll
      for (int distance = 8; distance; distance >>= 1) top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, distance));
      float shift = top == NEGATIVE_INFINITY ? 0.f : top, fade = expf(largest[i] - shift);
      largest[i] = top;
      total[i] *= fade;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int key = k0 + tx + 16 * j;
        float p = expf(score[i][j] - shift);
        total[i] += p;
        bool inside = row < queries && key < keys;
        sp[(ty + 16 * i) * WEIGHTS + tx + 16 * j] = inside ? p * (SPREAD ? kept(b, h, row, key, 1.f) : 1.f) : 0.f;
      }
#pragma unroll
      for (int c = 0; c < D / 16; c++) sum[i][c] *= fade;
    }
    __syncwarp();  // a row's 32 weights were written by 16 lanes of this warp
#pragma unroll 4
    for (int j = 0; j < KEYS; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < D / 16; c++)
          sum[i][c] = fmaf(sp[(ty + 16 * i) * WEIGHTS + j], sv[j * PITCH + tx + 16 * c], sum[i][c]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = q0 + ty + 16 * i;
#pragma unroll
    for (int distance = 8; distance; distance >>= 1) total[i] += __shfl_xor_sync(WHOLE_WARP, total[i], distance);
    if (row >= queries) continue;
#pragma unroll
    for (int c = 0; c < D / 16; c++)
      if (tx + 16 * c < size) y[((size_t)(first + row) * gridDim.y + h) * size + tx + 16 * c] = sum[i][c] / total[i];
  }
}

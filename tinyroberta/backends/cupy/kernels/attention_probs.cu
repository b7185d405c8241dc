// The same attention with its probabilities written out, where they were asked for or a head is wider than the fused kernels
// take.
//
// q, k, v, y of type T, float, bf16 or f16; probabilities: float, sequence b's (H, Sq, Sk) from the number starts[b] on,
// multiplied by head_mask. Everything else as in attention.cu. `probabilities` gives a query's row to a warp, its lanes taking
// every 32nd key; `values` gives a query's d numbers to a warp.
// Launch: grid (tiles, H), block (32, 4): 64 queries a block, a warp every fourth.
#include "primitives.cuh"
#include "attention.cuh"

template <class T>
__global__ void __launch_bounds__(128) probabilities(const T* __restrict__ q, const T* __restrict__ k, float* __restrict__ p,
                                                     const i64* __restrict__ starts, ATTENTION_ARGUMENTS) {
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y, lane = threadIdx.x;
  if (b < 0) return;
  SPREADS;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b], before = keys - queries;
  const T* base = k + b * key_batch + h * key_head + key_start[b] * key_row;
  for (int row = q0 + threadIdx.y; row < min(q0 + 64, queries); row += 4) {
    const T* query = q + (size_t)(first + row) * query_row + h * size;
    float* out = p + starts[b] + ((size_t)h * queries + row) * keys;
    float top = NEGATIVE_INFINITY, total = 0.f;
    for (int key = lane; key < keys; key += 32) {
      float score = 0.f;
      for (int c = 0; c < size; c++) score = fmaf(number(query[c]), number(base[key * key_row + c]), score);
      bool read = !causal || key <= before + row;
      out[key] = score = read ? score * scale + added(b, h, row, key, 0.f) : NEGATIVE_INFINITY;
      top = fmaxf(top, score);
    }
    top = warp_max(top);
    for (int key = lane; key < keys; key += 32) total += out[key] = expf(out[key] - top);
    total = warp_sum(total);
    for (int key = lane; key < keys; key += 32) out[key] = out[key] / total * kept(b, h, row, key, 1.f);
  }
}

template <class T>
__global__ void __launch_bounds__(128)
    values(const float* __restrict__ p, const T* __restrict__ v, T* __restrict__ y, const i64* __restrict__ starts,
           const int* __restrict__ tiles, const int* __restrict__ query_start, const int* __restrict__ key_start,
           const int* __restrict__ key_length, i64 key_batch, i64 key_head, i64 key_row, int size) {
  int b = tiles[2 * blockIdx.x], q0 = tiles[2 * blockIdx.x + 1], h = blockIdx.y;
  if (b < 0) return;
  int first = query_start[b], queries = query_start[b + 1] - first, keys = key_length[b];
  const T* base = v + b * key_batch + h * key_head + key_start[b] * key_row;
  for (int row = q0 + threadIdx.y; row < min(q0 + 64, queries); row += 4) {
    const float* weights = p + starts[b] + ((size_t)h * queries + row) * keys;
    for (int c = threadIdx.x; c < size; c += 32) {
      float sum = 0.f;
      for (int key = 0; key < keys; key++) sum = fmaf(weights[key], number(base[key * key_row + c]), sum);
      y[((size_t)(first + row) * gridDim.y + h) * size + c] = rounded<T>(sum);
    }
  }
}

// Layer normalisation of one row by one warp (Ba et al. 2016), by two passes: the mean, then the mean squared distance from it,
// which loses no digits where the mean is large. The row is read again by whoever takes the result, from the cache. `Row` gives
// its numbers.
#pragma once

template <int V>
struct Stored {
  const float* x;
  __device__ __forceinline__ void read(float (&to)[V], int i) const { load<V>(to, x + i); }
};

template <int V, class Row>
struct Normed {
  Row row;
  const float *weight, *bias;
  float mean, scale;
  __device__ __forceinline__ void read(float (&to)[V], int i) const {
    float w[V], b[V];
    row.read(to, i);
    load<V>(w, weight + i);
    load<V>(b, bias + i);
    for (int j = 0; j < V; j++) to[j] = fmaf((to[j] - mean) * scale, w[j], b[j]);  // spelt out: every reading gives the same bits
  }
};

template <int V, class Row>
__device__ __forceinline__ Normed<V, Row> normed(const Row& row, const float* weight, const float* bias, int width, float eps) {
  float x[V], sum = 0.f, squares = 0.f;
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    row.read(x, i);
    for (int j = 0; j < V; j++) sum += x[j];
  }
  float mean = warp_sum(sum) / width;
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    row.read(x, i);
    for (int j = 0; j < V; j++) squares += (x[j] - mean) * (x[j] - mean);
  }
  return {row, weight, bias, mean, 1.f / sqrtf(warp_sum(squares) / width + eps)};
}

template <int V, class Row, class Out>
__device__ __forceinline__ void write(const Row& row, Out* y, int width) {
  float x[V];
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    row.read(x, i);
    store<V>(y + i, x);
  }
}

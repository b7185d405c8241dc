// Layer normalisation of one row by one warp (Ba et al. 2016), by two passes: the mean, then the mean squared distance from it,
// which loses no digits where the mean is large. The row is read three times, the last two from the cache. `Row` gives its
// numbers.
#pragma once

template <int V, class Row, class Out>
__device__ __forceinline__ void normalise(const Row& row, const float* weight, const float* bias, Out* y, int width, float eps) {
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
  float scale = 1.f / sqrtf(warp_sum(squares) / width + eps);
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    float w[V], b[V];
    row.read(x, i);
    load<V>(w, weight + i);
    load<V>(b, bias + i);
    for (int j = 0; j < V; j++) x[j] = (x[j] - mean) * scale * w[j] + b[j];
    store<V>(y + i, x);
  }
}

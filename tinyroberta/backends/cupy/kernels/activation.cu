// y = activate(x) + residual, number by number; with the activation "linear" it converts between types or adds.
//
// x: n numbers (float, bf16 or f16); residual: n floats or null; y: n numbers, which may be x itself.
// Launch: a thread V numbers in steps of the grid: any grid of blocks of 256 threads. V = 4 where n is a multiple of 4 and every array
// begins at a multiple of 16 bytes, else 1.
#include "primitives.cuh"
#include "activation.cuh"

template <class In, class Out, int V>
__global__ void __launch_bounds__(256) activation(const In* x, const float* residual, Out* y, i64 n, int which) {
  auto each = [&](auto bend) {
    for (i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * V; i < n; i += (i64)gridDim.x * 256 * V) {
      float value[V], added[V] = {};
      load<V>(value, x + i);
      if (residual) load<V>(added, residual + i);
#pragma unroll
      for (int j = 0; j < V; j++) value[j] = bend(value[j]) + added[j];
      store<V>(y + i, value);
    }
  };
  if (which == 1)
    each([](float value) { return exact_gelu(value); });  // the usual one, without a choice for every number
  else
    each([=](float value) { return activate(value, which); });
}

// y = activate(x) + residual, number by number; with the activation "linear" it converts between types or adds.
//
// x: n numbers (float or bf16); residual: n floats or null; y: n numbers, which may be x itself.
// Launch: a thread a number in steps of the grid: any grid of blocks of 256 threads.
#include "primitives.cuh"
#include "activation.cuh"

template <class In, class Out>
__global__ void __launch_bounds__(256) activation(const In* x, const float* residual, Out* y, i64 n, int name) {
  for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < n; i += (i64)gridDim.x * 256) {
    float value = activate(number(x[i]), name);
    y[i] = rounded<Out>(residual ? value + residual[i] : value);
  }
}

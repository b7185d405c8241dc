// y = (x - mean) / sqrt(variance + eps) * weight + bias, each row for itself (Ba et al. 2016; the two passes: norm.cuh).
//
// x (rows, width), weight, bias (width,) float; y (rows, width) float, or bf16 or f16 for the product that reads it; or, for
// linear_sliced, y's rows cut into digits and scales (digits.cuh).
// Launch: a warp a row, four rows a block: grid (rows / 4 rounded up), block (32, 4). V = 4 where width is a multiple of 4, else
// 1.
#include "primitives.cuh"
#include "norm.cuh"
#include "cut.cuh"

template <class Out, int V>
__global__ void __launch_bounds__(128)
    layer_norm(const float* x, const float* weight, const float* bias, Out* y, int rows, int width, float eps) {
  int row = blockIdx.x * 4 + threadIdx.y;
  if (row >= rows) return;
  size_t start = (size_t)row * width;
  normed<V>(Stored<V>{x + start}, weight, bias, width, eps, [&](auto& numbers) { write<V>(numbers, y + start, width); });
}

template <int V>
__global__ void __launch_bounds__(128) layer_norm_cut(const float* x, const float* weight, const float* bias, signed char* digits,
                                                      float* scales, int rows, int width, float eps) {
  int row = blockIdx.x * 4 + threadIdx.y;
  if (row >= rows) return;
  size_t size = (size_t)(width + CUT_STEP - 1) / CUT_STEP * CUT_BYTES;
  normed<V>(Stored<V>{x + (size_t)row * width}, weight, bias, width, eps,
            [&](auto& numbers) { cut<V>(numbers, digits + row * size, scales + row, width); });
}

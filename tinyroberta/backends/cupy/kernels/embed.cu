// The sum of a token's three embeddings, and its layer norm in the same launch: the sum is never written.
//
// ids, positions, token_types (T,) int32; word (V, D), position (P, D), token_type (N, D) float; x, y (T, D) float. `ids` null:
// `word` is (T, D), the words' vectors themselves. `positions` null: none are added.
// Launch: a warp a token, four a block: grid (T / 4 rounded up), block (32, 4). V = 4 where D is a multiple of 4, else 1.
#include "primitives.cuh"
#include "norm.cuh"

template <int V>
struct Embedded {
  const float *word, *position, *token_type;
  __device__ void read(float (&to)[V], int i) const {
    float more[V];
    load<V>(to, word + i);
    load<V>(more, token_type + i);
    for (int j = 0; j < V; j++) to[j] += more[j];
    if (!position) return;
    load<V>(more, position + i);
    for (int j = 0; j < V; j++) to[j] += more[j];
  }
};

template <int V>
__device__ __forceinline__ Embedded<V> embedded(const int* ids, const int* positions, const int* token_types, const float* word,
                                                const float* position, const float* token_type, int row, int width) {
  return {word + (size_t)(ids ? ids[row] : row) * width, positions ? position + (size_t)positions[row] * width : nullptr,
          token_type + (size_t)token_types[row] * width};
}

template <int V>
__global__ void __launch_bounds__(128) embed(const int* ids, const int* positions, const int* token_types, const float* word,
                                             const float* position, const float* token_type, float* x, int rows, int width) {
  int row = blockIdx.x * 4 + threadIdx.y;
  if (row >= rows) return;
  Embedded<V> sum = embedded<V>(ids, positions, token_types, word, position, token_type, row, width);
  write<V>(sum, x + (size_t)row * width, width);
}

template <int V>
__global__ void __launch_bounds__(128)
    embed_layer_norm(const int* ids, const int* positions, const int* token_types, const float* word, const float* position,
                     const float* token_type, const float* weight, const float* bias, float* y, int rows, int width, float eps) {
  int row = blockIdx.x * 4 + threadIdx.y;
  if (row >= rows) return;
  Embedded<V> sum = embedded<V>(ids, positions, token_types, word, position, token_type, row, width);
  normed<V>(sum, weight, bias, width, eps, [&](auto& numbers) { write<V>(numbers, y + (size_t)row * width, width); });
}

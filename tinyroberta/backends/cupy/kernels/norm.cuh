// Layer normalisation of one row by one warp (Ba et al. 2016), by two passes: the mean, then the mean squared distance from it,
// which loses no digits where the mean is large. `Row` gives a row's numbers, again each time it is asked; where they fit, the warp
// holds them in its registers instead and memory is asked once, for all at a time.
#pragma once

template <int V>
struct Stored {
  const float* x;
  __device__ __forceinline__ void read(float (&to)[V], int i) const { load<V>(to, x + i); }
};

template <int V, int N = 8>
struct Held {
  static constexpr int MOST = N * 32 * V;
  float x[N][V];
};

// use(numbers, where the first of them stands), for all of a row that this lane has.
template <int V, int N, class Use>
__device__ __forceinline__ void each(Held<V, N>& row, int width, const Use& use) {
#pragma unroll
  for (int p = 0; p < N; p++)
    if (int i = (p * 32 + threadIdx.x) * V; i < width) use(row.x[p], i);
}
template <int V, class Row, class Use>
__device__ __forceinline__ void each(Row& row, int width, const Use& use) {
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    float x[V];
    row.read(x, i);
    use(x, i);
  }
}

template <int V, int N = 8, class Row>
__device__ __forceinline__ Held<V, N> held(const Row& row, int width) {
  Held<V, N> x;
  each<V>(x, width, [&](float(&to)[V], int i) { row.read(to, i); });
  return x;
}

template <int V>
struct Norm {
  const float *weight, *bias;
  float mean, scale;
  __device__ __forceinline__ void apply(float (&x)[V], int i) const {
    float w[V], b[V];
    load<V>(w, weight + i);
    load<V>(b, bias + i);
    for (int j = 0; j < V; j++) x[j] = fmaf((x[j] - mean) * scale, w[j], b[j]);  // spelt out: every reading gives the same bits
  }
};

template <int V, class Row>
struct Normed {
  Row row;
  Norm<V> norm;
  __device__ __forceinline__ void read(float (&to)[V], int i) const {
    row.read(to, i);
    norm.apply(to, i);
  }
};

template <int V, class Row>
__device__ __forceinline__ Norm<V> norm_of(Row& row, const float* weight, const float* bias, int width, float eps) {
  float sum = 0.f, squares = 0.f;
  each<V>(row, width, [&](const float(&x)[V], int) {
    for (int j = 0; j < V; j++) sum += x[j];
  });
  float mean = warp_sum(sum) / width;
  each<V>(row, width, [&](const float(&x)[V], int) {
    for (int j = 0; j < V; j++) squares += (x[j] - mean) * (x[j] - mean);
  });
  return {weight, bias, mean, 1.f / sqrtf(warp_sum(squares) / width + eps)};
}

// finish(the normed row), held or not.
template <int V, class Row, class Finish>
__device__ __forceinline__ void normed(Row row, const float* weight, const float* bias, int width, float eps, const Finish& finish) {
  if (width <= Held<V>::MOST) {
    Held<V> x = held<V>(row, width);
    Norm<V> norm = norm_of<V>(x, weight, bias, width, eps);
    each<V>(x, width, [&](float(&to)[V], int i) { norm.apply(to, i); });
    finish(x);
  } else {
    Normed<V, Row> x{row, norm_of<V>(row, weight, bias, width, eps)};
    finish(x);
  }
}

template <int V, class Row, class Out>
__device__ __forceinline__ void write(Row& row, Out* y, int width) {
  each<V>(row, width, [&](const float(&x)[V], int i) { store<V>(y + i, x); });
}

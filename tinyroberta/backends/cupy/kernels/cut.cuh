// A row cut into digits: what they are stands in digits.cuh.
#pragma once
#include "digits.cuh"

// By one warp, from a row of norm.cuh, which gives the same bits every time.
template <int V, class Row>
__device__ __forceinline__ void cut(Row& row, signed char* digits, float* scale, int width) {
  u32 most = 0;
  each<V>(row, width, [&](const float(&x)[V], int) {
    for (int j = 0; j < V; j++) most = max(most, __float_as_uint(x[j]) & 0x7fffffffu);
  });
  most = __reduce_max_sync(WHOLE_WARP, most);
  bool finite = most < 0x7f800000u;
  float gain = finite && most ? fminf((127 * 65793 - 1) / __uint_as_float(most), 0x1p126f) : 1.f;
  auto put = [&](const float(&x)[V], int i) {
    u32 bytes[3] = {};
    for (int j = 0; j < V; j++) {
      int n = finite ? (int)rintf(x[j] * gain) : 0;
      for (int s = 2; s >= 0; s--, n = (n + 128) >> 8) bytes[s] |= (n & 0xffu) << 8 * j;
    }
    for (int s = 0; s < 3; s++) {
      signed char* to = digits + i / CUT_STEP * CUT_BYTES + s * CUT_STEP + i % CUT_STEP;
      if constexpr (V == 4)
        *reinterpret_cast<u32*>(to) = bytes[s];
      else
        *to = (signed char)bytes[s];
    }
  };
  each<V>(row, width, put);
  const float none[V] = {};
  for (int i = width + threadIdx.x * V; i < (width + CUT_STEP - 1) / CUT_STEP * CUT_STEP; i += 32 * V) put(none, i);
  if (threadIdx.x == 0) *scale = finite ? 65536.f / gain : __int_as_float(0x7fffffff);
}

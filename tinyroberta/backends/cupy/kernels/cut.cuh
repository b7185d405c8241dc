// A row of float32 as three signed base-256 digits, x = scale (s0 + s1 / 256 + s2 / 65536), whose products are exact in integers
// (Ozaki et al. 2012; Ootomo et al. 2024). To the bit, as in ../../numba/slices.py:
//
//   gain = min(top / max|row|, 2^126)    1 for a row of zeros; |N| is at most top, so that s0 fits in a signed byte
//   N = rint(x gain)                     ties to even
//   s2, N = N mod 256 in -128..127, (N - s2) / 256, and so on; s0 is what is left
//   scale = 65536 / gain                 NaN for a row that is not finite, and zeros for its digits
//
// A row's digits stand as (width / 64 rounded up, 3, 64) bytes, zeros beyond its width.
#pragma once

constexpr int CUT_STEP = 64, CUT_BYTES = 3 * CUT_STEP;

// By one warp, which reads the row twice. `Row` gives its numbers, the same bits every time.
template <int V, class Row>
__device__ __forceinline__ void cut(const Row& row, signed char* digits, float* scale, int width) {
  float x[V];
  u32 most = 0;
  for (int i = threadIdx.x * V; i < width; i += 32 * V) {
    row.read(x, i);
    for (int j = 0; j < V; j++) most = max(most, __float_as_uint(x[j]) & 0x7fffffffu);
  }
  most = __reduce_max_sync(WHOLE_WARP, most);
  bool finite = most < 0x7f800000u;
  float gain = finite && most ? fminf((127 * 65793 - 1) / __uint_as_float(most), 0x1p126f) : 1.f;
  for (int i = threadIdx.x * V; i < (width + CUT_STEP - 1) / CUT_STEP * CUT_STEP; i += 32 * V) {
    bool there = finite && i < width;
    if (there) row.read(x, i);
    u32 bytes[3] = {};
    for (int j = 0; j < V; j++) {
      int n = there ? (int)rintf(x[j] * gain) : 0;
      for (int s = 2; s >= 0; s--, n = (n + 128) >> 8) bytes[s] |= (n & 0xffu) << 8 * j;
    }
    for (int s = 0; s < 3; s++) {
      signed char* to = digits + i / CUT_STEP * CUT_BYTES + s * CUT_STEP + i % CUT_STEP;
      if constexpr (V == 4)
        *reinterpret_cast<u32*>(to) = bytes[s];
      else
        *to = (signed char)bytes[s];
    }
  }
  if (threadIdx.x == 0) *scale = finite ? 65536.f / gain : __int_as_float(0x7fffffff);
}

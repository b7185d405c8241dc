// A row of float32 as three signed base-256 digits, x = scale (s0 + s1 / 256 + s2 / 65536), whose products are exact in integers
// (Ozaki et al. 2012; Ootomo et al. 2024). To the bit, as in ../../numba/cutting.py:
//
//   gain = min(top / max|row|, 2^126)    1 for a row of zeros; |N| is at most top, so that s0 fits in a signed byte
//   N = rint(x gain)                     ties to even
//   s2, N = N mod 256 in -128..127, (N - s2) / 256, and so on; s0 is what is left
//   scale = 65536 / gain                 NaN for a row that is not finite, and zeros for its digits
//
// A row's digits stand as (width / 64 rounded up, 3, 64) bytes, zeros beyond its width.
#pragma once

constexpr int CUT_STEP = 64, CUT_BYTES = 3 * CUT_STEP;

// A number of a product from the sums of its diagonals: (c0 + (c1 2^-8 + (c2 2^-16 + c3 2^-24))) scale + bias.
template <int DIAGONALS, class Sums>
__device__ __forceinline__ float combined(const Sums& sum, float scale, float bias) {
  float value = (float)sum(DIAGONALS - 1);
#pragma unroll
  for (int d = DIAGONALS - 2; d >= 0; d--) value = fmaf(value, 0x1p-8f, (float)sum(d));  // 2^-8 rounds nothing
  return __fadd_rn(__fmul_rn(value, scale), bias);  // not one fused multiply-add: the definition rounds twice
}

// Every hidden_act, by the numbers that ACTIVATIONS in ../ops.py gives them. The exact forms, in float32.
#pragma once

__device__ __forceinline__ float exact_gelu(float x) {
  float half = 0.5f * x;
  return fmaf(half, erff(x * 0.70710678118654752f), half);
}
__device__ __forceinline__ float sigmoid(float x) {
  float e = expf(-fabsf(x));
  return (x < 0.f ? e : 1.f) / (1.f + e);
}
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

__device__ __forceinline__ float activate(float x, int which) {
  switch (which) {
    case 1:
      return exact_gelu(x);
    case 2:
      return 0.5f * x * (1.f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));  // gelu_new and its names
    case 3:
      return fminf(fmaxf(exact_gelu(x), -10.f), 10.f);  // gelu_10
    case 4:
      return x * sigmoid(1.702f * x);  // quick_gelu
    case 5:
      return x < 0.f ? 0.f : x;  // relu
    case 6:
      return x < 0.f ? 0.f : x * x;  // relu2
    case 7:
      return x < 0.f ? 0.f : x > 6.f ? 6.f : x;  // relu6
    case 8:
      return x < 0.f ? 0.01f * x : x;  // leaky_relu
    case 9:
      return sigmoid(x);
    case 10:
      return x * sigmoid(x);  // silu, swish
    case 11:
      return tanhf(x);
    case 12:
      return x * tanhf(softplus(x));  // mish
    case 13:
      return x * fminf(fmaxf(x + 3.f, 0.f), 6.f) / 6.f;  // hardswish
    case 14:
      return 0.5f * erfcf((0.707107f - x) / (0.282095f * 1.4142135623730951f));  // laplace
    case 15:
      return sqrtf(softplus(x));  // sqrtsoftplus
    default:
      return x;  // linear
  }
}

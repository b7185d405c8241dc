// What the kernels share: 16-bit numbers, sums over a warp, and the few instructions that C++ has no words for. Each of those has
// a second body for the CPU emulator of tests/cuda_on_cpu. No header of the CUDA toolkit is needed.
#pragma once

typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct bf16 {
  static constexpr int MANTISSA = 7;
  unsigned short bits;
};
struct f16 {
  static constexpr int MANTISSA = 10;
  unsigned short bits;
};

#define WHOLE_WARP 0xffffffffu
#define NEGATIVE_INFINITY __int_as_float(0xff800000)  // NVRTC has no INFINITY

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float number(f16 x) {
#ifdef CUDA_ON_CPU
  return emulator::float_of_f16(x.bits);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#endif
}

// Two numbers rounded to nearest even and packed, the first in the low half.
template <class T>
__device__ __forceinline__ u32 packed(float low, float high) {
#ifdef CUDA_ON_CPU
  if (T::MANTISSA == 10) return emulator::f16_of_float(low) | (u32)emulator::f16_of_float(high) << 16;
  return emulator::bf16_of_float(low) | (u32)emulator::bf16_of_float(high) << 16;
#else
  u32 y;
  if constexpr (T::MANTISSA == 10)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#endif
}

template <class T>
__device__ __forceinline__ T rounded(float x) {
  return {(unsigned short)packed<T>(x, 0.f)};
}
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}

// V consecutive numbers, V = 4 from addresses that allow one access for all of them.
template <int V>
__device__ __forceinline__ void load(float (&to)[V], const float* from) {
  if constexpr (V == 4) {
    float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  } else {
    to[0] = *from;
  }
}
template <int V, class T>
__device__ __forceinline__ void load(float (&to)[V], const T* from) {
  if constexpr (V == 4) {
    uint2 x = *reinterpret_cast<const uint2*>(from);
    u32 pairs[2] = {x.x, x.y};
    for (int j = 0; j < 4; j++) to[j] = number(T{(unsigned short)(pairs[j / 2] >> j % 2 * 16)});
  } else {
    to[0] = number(*from);
  }
}
template <int V>
__device__ __forceinline__ void store(float* to, const float (&from)[V]) {
  if constexpr (V == 4)
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  else
    *to = from[0];
}
template <int V, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[V]) {
  if constexpr (V == 4)
    *reinterpret_cast<uint2*>(to) = make_uint2(packed<T>(from[0], from[1]), packed<T>(from[2], from[3]));
  else
    *to = rounded<T>(from[0]);
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) x += __shfl_xor_sync(WHOLE_WARP, x, distance);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, distance));
  return x;
}

// 2^x to two parts in 2^22, as the special-function unit has it.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef CUDA_ON_CPU
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 16 bytes into shared memory asynchronously (cp.async), those from `valid` on as zeros; both addresses are multiples of 16.
__device__ __forceinline__ void fetch_16(void* shared, const void* global, int valid) {
#ifdef CUDA_ON_CPU
  emulator::copy_async(shared, global, 16, valid);
#else
  u32 to = (u32)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
#endif
}
// Eight numbers into shared memory, those from `valid` on as zeros: asynchronously where the addresses are aligned, else one by
// one.
template <class T>
__device__ __forceinline__ void fetch(T* shared, const T* global, int valid, bool aligned) {
  valid = valid < 0 ? 0 : valid > 8 ? 8 : valid;
  if (aligned) return fetch_16(shared, global, valid * 2);
#pragma unroll 1
  for (int i = 0; i < 8; i++) shared[i] = i < valid ? global[i] : T{0};
}
__device__ __forceinline__ void fetch_commit() {
#ifdef CUDA_ON_CPU
  emulator::commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int KEEP>
__device__ __forceinline__ void fetch_wait() {  // until at most KEEP commits are under way
#ifdef CUDA_ON_CPU
  emulator::wait(KEEP);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(KEEP) : "memory");
#endif
}

// Four 8x8 tiles of 16-bit numbers from shared memory, lane 8 i + j giving the address of row j of tile i.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_tiles(u32 (&to)[4], const void* row) {
#ifdef CUDA_ON_CPU
  emulator::ldmatrix<4, TRANSPOSED>(to, row);
#else
  u32 from = (u32)__cvta_generic_to_shared(row);
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#endif
}

// d (16 x 8) += a (16 x 16) b (16 x 8) of T on the tensor cores, float32 sums; the registers' layout is PTX's mma.m16n8k16.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef CUDA_ON_CPU
  u32 b[2] = {b0, b1};
  emulator::mma_m16n8k16<T>(d, a, b);
#else
#define MMA(type)                                                                                                     \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
               "{%0,%1,%2,%3};"                                                                                       \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (T::MANTISSA == 10)
    MMA("f16");
  else
    MMA("bf16");
#undef MMA
#endif
}

// d (16 x 8) += a (16 x 32) b (32 x 8) of int8, int32 sums: PTX's mma.m16n8k32. A row's 32 bytes are 16 numbers of 16 bits to
// load_tiles.
__device__ __forceinline__ void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef CUDA_ON_CPU
  u32 b[2] = {b0, b1};
  emulator::mma_m16n8k32(d, a, b);
#else
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

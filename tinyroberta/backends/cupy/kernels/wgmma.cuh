// Hopper's matrix instructions (PTX ISA, wgmma; sm_90a alone): a warpgroup of four warps multiplies tiles that lie in shared memory,
// asynchronously. Each has a second body for the CPU emulator, which does the work when it is waited for.
//
// A tile's rows are WIDTH = 128 or 64 bytes, one after another from a multiple of 1024 bytes; a row's 16-byte pieces are permuted
// (`swizzled`), so that neither copies nor products meet in a bank. Along a row (the sum's index K, 32 bytes an instruction) a tile
// is read from further along its first row. The transposed one has the sum's index down its columns.
#pragma once

// Where a tile's row r has its 16-byte piece c.
template <int WIDTH>
__device__ __forceinline__ int swizzled(int r, int c) {
  constexpr int PIECES = WIDTH / 16;
  return r * WIDTH + (c ^ r / (8 / PIECES) % PIECES) * 16;
}

// A matrix descriptor: address, 8 rows' step, the permutation.
template <int WIDTH>
__device__ __forceinline__ u64 described(const void* tile) {
#ifdef CUDA_ON_CPU
  return (u64)tile;
#else
  u32 at = (u32)__cvta_generic_to_shared(tile);
  return (at & 0x3ffff) >> 4 | 1ull << 16 | (u64)(WIDTH * 8 / 16) << 32 | (WIDTH == 128 ? 1ull : 2ull) << 62;
#endif
}

#ifdef CUDA_ON_CPU
#define WGMMA_ONLY(ptx)
#else
#define WGMMA_ONLY(ptx) asm volatile(ptx ::: "memory")
#endif
// Before the first product, and after registers or shared memory that products read were written.
__device__ __forceinline__ void products_begin() { WGMMA_ONLY("wgmma.fence.sync.aligned;"); }
__device__ __forceinline__ void products_commit() {
#ifdef CUDA_ON_CPU
  emulator::products_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// By every thread that copied, before the barrier after which the copies are multiplied.
__device__ __forceinline__ void copies_to_products() { WGMMA_ONLY("fence.proxy.async.shared::cta;"); }

// The compiler is not to read them before, nor keep what it read.
template <class T, int N>
__device__ __forceinline__ void settled(T (&x)[N]) {
#ifndef CUDA_ON_CPU
#pragma unroll
  for (int i = 0; i < N; i++)
    if constexpr (T(0.5f) > T(0))  // float
      asm volatile("" : "+f"(x[i])::"memory");
    else
      asm volatile("" : "+r"(x[i])::"memory");
#endif
}
// Until at most KEEP commits are under way; what the others left is in `results`.
template <int KEEP, class... Results>
__device__ __forceinline__ void products_wait(Results&... results) {
#ifdef CUDA_ON_CPU
  emulator::products_wait(KEEP);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(KEEP) : "memory");
  (settled(results), ...);
#endif
}

#define WGMMA_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_4(type, i) type(d[i]), type(d[i + 1]), type(d[i + 2]), type(d[i + 3])
#define WGMMA_SUMS(type, i) WGMMA_4(type, i), WGMMA_4(type, i + 4), WGMMA_4(type, i + 8), WGMMA_4(type, i + 12)

// d (64 x 64) (+)= a b of T, bf16 or f16, float sums in the layout of mma.m16n8k16, eight columns after eight. a (64 x 16): registers
// in that layout, 16 rows a warp. b: (64 x 16)^T by rows, or DOWN, its columns in rows, (16 x 64). `add` false: d is written over.
template <class T, bool DOWN>
__device__ __forceinline__ void product(float (&d)[32], const u32 (&a)[4], u64 b, bool add) {
#ifdef CUDA_ON_CPU
  emulator::product<T, 128, DOWN>(d, a, b, add);
#else
#define WGMMA(type)                                                                                                            \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" WGMMA_0 \
               ", " WGMMA_16 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"                                                    \
               : WGMMA_SUMS("+f", 0), WGMMA_SUMS("+f", 16)                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)DOWN))
  if constexpr (T::MANTISSA == 7)
    WGMMA("bf16");
  else
    WGMMA("f16");
#undef WGMMA
#endif
}

// d (64 x N) += a (64 x 32) b (N x 32)^T of int8, both in shared memory in rows of 64 bytes, int sums in the same layout.
template <int N>
__device__ __forceinline__ void product(int (&d)[N / 2], u64 a, u64 b) {
#ifdef CUDA_ON_CPU
  emulator::product_of_bytes<N>(d, a, b);
#else
#define WGMMA(n, registers, from, to, ...) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k32.s32.s8.s8 {" registers "}, %" from ", %" to ", 1;" : __VA_ARGS__ : "l"(a), "l"(b))
  if constexpr (N == 32)
    WGMMA("32", WGMMA_0, "16", "17", WGMMA_SUMS("+r", 0));
  else if constexpr (N == 96)
    WGMMA("96", WGMMA_0 ", " WGMMA_16 ", " WGMMA_32, "48", "49", WGMMA_SUMS("+r", 0), WGMMA_SUMS("+r", 16), WGMMA_SUMS("+r", 32));
  else
    WGMMA("128", WGMMA_0 ", " WGMMA_16 ", " WGMMA_32 ", " WGMMA_48, "64", "65", WGMMA_SUMS("+r", 0), WGMMA_SUMS("+r", 16),
          WGMMA_SUMS("+r", 32), WGMMA_SUMS("+r", 48));
#undef WGMMA
#endif
}

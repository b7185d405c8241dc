// emulator.h: run CUDA C++ kernels on the CPU, one fiber per CUDA thread.
// Not a simulator of speed: a checker of results. Blocks run one after another
// on the calling thread; the threads of a block switch only at barriers and at
// warp collectives, in an order the test picks (forward, reverse, random), so a
// missing barrier shows as a wrong result in one of the orders.
#pragma once
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// ---------------------------------------------------------------- language
#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // "extern __shared__" is rewritten by the loader
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct bf16;
struct f16;
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define EMULATOR_VECTOR(T, N, A2, A3, A4)                      \
  struct T##1 { N x; };                                        \
  struct alignas(A2) T##2 { N x, y; };                         \
  struct T##3 { N x, y, z; };                                  \
  struct alignas(A4) T##4 { N x, y, z, w; };                   \
  inline T##2 make_##T##2(N x, N y) { return {x, y}; }         \
  inline T##3 make_##T##3(N x, N y, N z) { return {x, y, z}; } \
  inline T##4 make_##T##4(N x, N y, N z, N w) { return {x, y, z, w}; }
EMULATOR_VECTOR(float, float, 8, 4, 16)
EMULATOR_VECTOR(int, int, 8, 4, 16)
EMULATOR_VECTOR(uint, unsigned, 8, 4, 16)
EMULATOR_VECTOR(short, short, 4, 2, 8)
EMULATOR_VECTOR(ushort, unsigned short, 4, 2, 8)
EMULATOR_VECTOR(longlong, long long, 16, 8, 16)

// ---------------------------------------------------------------- fibers
namespace emulator {
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024, MAX_DYN_SMEM = 232448;

struct Group {
  uint32_t mask, arrived;
  const void* kind;
};
struct Warp {
  uint32_t live, runnable;
  void* slot[32];
  std::vector<Group> groups;
};
struct Fiber {
  void* sp;
  uint3 tid;
  int lane;
  Warp* warp;
  int bar_line;
  struct Copy {
    void* to;
    const void* from;
    size_t bytes, valid;
  };
  std::deque<std::vector<Copy>> commits;
  std::vector<Copy> pending;  // cp.async
  struct Product {            // wgmma: a warp's 16 rows
    void* d;
    const uint32_t* a;  // null: at `rows`
    uint64_t rows, columns;
    bool add;
    void (*run)(Fiber*);  // by one lane for its warp, whose lanes stand one after another
  };
  std::deque<std::vector<Product>> products;  // the last is not committed
};
struct State {
  Fiber f[MAX_THREADS];
  Warp w[MAX_THREADS / 32];
  char* stacks = nullptr;
  void* main_sp = nullptr;
  Fiber* cur = nullptr;
  int n = 0, nwarps = 0, live = 0, at_bar = 0, order = 0;
  uint32_t rng = 1;
  uint64_t switches = 0;
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
  bool failed = false;
  char err[512] = {0};
  uint3 bid{};
  dim3 bdim, gdim;
  size_t smem = 0;
  alignas(1024) char dyn[MAX_DYN_SMEM];
};
inline State S;  // one per compiled module

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
inline void* make_context(char* top, void (*entry)()) {
  void** p = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--p = nullptr;
  *--p = reinterpret_cast<void*>(entry);  // return address; stack stays 16-aligned at entry
  for (int i = 0; i < 6; i++) *--p = nullptr;
  return p;
}
#else
}
#include <ucontext.h>
namespace emulator {  // portable fallback: about 20 times slower per switch (a system call each)
inline ucontext_t U[MAX_THREADS + 1];
inline void emulator_switch(void** save, void* to) {
  static thread_local int dummy;
  (void)dummy;
  int a = save == &S.main_sp ? MAX_THREADS : int(reinterpret_cast<Fiber*>(save) - S.f);
  *save = &U[a];
  swapcontext(&U[a], static_cast<ucontext_t*>(to));
}
inline void* make_context(char* top, void (*entry)()) {
  int i = int((top - S.stacks - 1) / STACK);
  ucontext_t& u = U[i];
  getcontext(&u);
  u.uc_stack.ss_sp = S.stacks + i * STACK;
  u.uc_stack.ss_size = top - (S.stacks + i * STACK);
  u.uc_link = nullptr;
  makecontext(&u, entry, 0);
  return &u;
}
#endif

[[noreturn]] inline void leave() {  // give up the block: back to launch() for good
  void* dead;
  emulator_switch(&dead, S.main_sp);
  __builtin_unreachable();
}
template <class... A>
[[noreturn]] inline void fail(const char* fmt, A... a) {
  int k = snprintf(S.err, sizeof S.err, "block (%u,%u,%u) thread (%u,%u,%u): ", S.bid.x, S.bid.y, S.bid.z, S.cur->tid.x,
                   S.cur->tid.y, S.cur->tid.z);
  snprintf(S.err + k, sizeof S.err - k, fmt, a...);
  S.failed = true;
  leave();
}
inline int pick(uint32_t m) {
  if (S.order == 0) return __builtin_ctz(m);
  if (S.order == 1) return 31 - __builtin_clz(m);
  S.rng ^= S.rng << 13;
  S.rng ^= S.rng >> 17;
  S.rng ^= S.rng << 5;
  for (int k = S.rng % __builtin_popcount(m); k--;) m &= m - 1;
  return __builtin_ctz(m);
}
inline void go(Fiber* from, Fiber* to) {
  S.cur = to;
  S.switches++;
  emulator_switch(&from->sp, to->sp);
}
inline void block_self() {  // current lane cannot go on: next runnable lane of the warp, else the scheduler
  Fiber* me = S.cur;
  Warp& w = *me->warp;
  w.runnable &= ~(1u << me->lane);
  if (w.runnable)
    go(me, &S.f[(&w - S.w) * 32 + pick(w.runnable)]);
  else {
    S.switches++;
    emulator_switch(&me->sp, S.main_sp);
  }
}
inline void release_barrier() {
  int line = -1;
  for (int i = 0; i < S.n; i++)
    if (S.w[i / 32].live >> (i % 32) & 1) {
      if (line < 0)
        line = S.f[i].bar_line;
      else if (line != S.f[i].bar_line) {
        S.cur = &S.f[i];
        snprintf(S.err, sizeof S.err, "block (%u,%u,%u): threads wait in different __syncthreads (lines %d and %d)", S.bid.x,
                 S.bid.y, S.bid.z, line, S.f[i].bar_line);
        S.failed = true;
        return;
      }
    }
  S.at_bar = 0;
  for (int k = 0; k < S.nwarps; k++) S.w[k].runnable = S.w[k].live;
}
inline void sync_block(int line) {
  S.cur->bar_line = line;
  S.at_bar++;
  block_self();
}

// A warp collective: every lane of the mask leaves a pointer to its operands; the last to come does the
// work for all of them straight on the others' stacks. One switch per lane per collective.
template <class Op>
inline void collective(uint32_t mask, void* mine, Op op) {
  static const char kind = 0;
  Fiber* me = S.cur;
  Warp& w = *me->warp;
  uint32_t bit = 1u << me->lane;
  if (!(mask & bit)) fail("warp collective: the calling lane %d is not in its mask %08x", me->lane, mask);
  if (mask & ~w.live) fail("warp collective: mask %08x names lanes that have left (live %08x)", mask, w.live);
  Group* g = nullptr;
  for (auto& x : w.groups)
    if (x.mask == mask) g = &x;
  if (!g) {
    w.groups.push_back({mask, 0, &kind});
    g = &w.groups.back();
  }
  if (g->arrived && g->kind != &kind) fail("warp collective: lanes meet in different operations");
  g->kind = &kind;
  g->arrived |= bit;
  w.slot[me->lane] = mine;
  if (g->arrived == mask) {
    g->arrived = 0;
    op(w.slot, mask);
    w.runnable |= mask;
  } else
    block_self();
}
inline void fiber_main() {
  S.body(S.closure);
  Fiber* me = S.cur;
  Warp& w = *me->warp;
  uint32_t bit = 1u << me->lane;
  S.live--;
  w.live &= ~bit;
  for (auto& g : w.groups)
    if (g.arrived && (g.mask & bit)) fail("lane %d left while others wait for it in a warp collective", me->lane);
  block_self();
  __builtin_unreachable();
}
inline bool run_block() {
  S.live = S.n;
  S.at_bar = 0;
  S.nwarps = (S.n + 31) / 32;
  memset(S.dyn, 0xFF, S.smem);  // NaN in every type
  for (int k = 0; k < S.nwarps; k++) {
    int m = S.n - 32 * k;
    S.w[k].live = S.w[k].runnable = m >= 32 ? ~0u : (1u << m) - 1;
    S.w[k].groups.clear();
  }
  for (int i = 0; i < S.n; i++) {
    Fiber& f = S.f[i];
    f.tid = {i % S.bdim.x, i / S.bdim.x % S.bdim.y, i / (S.bdim.x * S.bdim.y)};
    f.lane = i % 32;
    f.warp = &S.w[i / 32];
    f.bar_line = 0;
    f.commits.clear();
    f.pending.clear();
    f.products.assign(1, {});
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(S.stacks + i * STACK, STACK);
#endif
    f.sp = make_context(S.stacks + (i + 1) * STACK - (i % 61) * 192, fiber_main);  // coloured: fewer cache clashes
  }
  while (S.live && !S.failed) {
    bool moved = false;
    for (int j = 0; j < S.nwarps && !S.failed; j++) {
      Warp& w = S.w[S.order == 1 ? S.nwarps - 1 - j : j];
      while (w.runnable && !S.failed) {
        moved = true;
        S.cur = &S.f[(&w - S.w) * 32 + pick(w.runnable)];
        S.switches++;
        emulator_switch(&S.main_sp, S.cur->sp);
      }
    }
    if (S.failed || !S.live) break;
    if (S.at_bar == S.live)
      release_barrier();
    else if (!moved) {
      snprintf(S.err, sizeof S.err,
               "block (%u,%u,%u): deadlock: %d of %d live threads at __syncthreads, the others in warp collectives", S.bid.x,
               S.bid.y, S.bid.z, S.at_bar, S.live);
      S.failed = true;
    }
  }
  return !S.failed;
}
template <class... A, size_t... I>
inline void call(void (*k)(A...), void** args, std::index_sequence<I...>) {
  k(*static_cast<std::remove_cv_t<A>*>(args[I])...);
}
template <class... A>
int launch(void (*k)(A...), const unsigned* grid, const unsigned* block, size_t smem, void** args, int order, unsigned seed,
           int flush) {
  struct Subnormals {  // -ftz=true: zeros instead
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    Subnormals(bool flushed) { _mm_setcsr(flushed ? before | 0x8040 : before); }
    ~Subnormals() { _mm_setcsr(before); }
#else
    Subnormals(bool) {}
#endif
  } subnormals(flush);
  struct C {
    void (*k)(A...);
    void** a;
  } c{k, args};
  S.failed = false;
  S.err[0] = 0;
  S.smem = smem;
  S.order = order;
  S.rng = seed | 1;
  S.switches = 0;
  S.bdim = {block[0], block[1], block[2]};
  S.gdim = {grid[0], grid[1], grid[2]};
  S.n = block[0] * block[1] * block[2];
  if (S.n < 1 || S.n > MAX_THREADS || block[2] > 64) {
    snprintf(S.err, sizeof S.err, "bad block size %d", S.n);
    return 1;
  }
  if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[1] > 65535 || grid[2] > 65535) {
    snprintf(S.err, sizeof S.err, "bad grid");
    return 1;
  }
  if (smem > MAX_DYN_SMEM) {
    snprintf(S.err, sizeof S.err, "%zu bytes of dynamic shared memory", smem);
    return 1;
  }
  if (!S.stacks)
    S.stacks = static_cast<char*>(
        mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  S.closure = &c;
  S.body = [](void* p) {
    C* c = static_cast<C*>(p);
    call(c->k, c->a, std::index_sequence_for<A...>{});
  };
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        S.bid = {x, y, z};
        if (!run_block()) return 1;
      }
  return 0;
}
// One letter and size per kernel parameter, so the stand-in can check what is passed: "Pcf4 Pf4 i4 f4"
template <class T>
void sig1(char*& p) {
  if constexpr (std::is_pointer_v<T>) {
    *p++ = 'P';
    using E = std::remove_pointer_t<T>;
    if (std::is_const_v<E>) *p++ = 'c';
    sig1<std::remove_cv_t<E>>(p);
    return;
  } else if constexpr (std::is_void_v<T>)
    *p++ = 'v';
  else if constexpr (std::is_same_v<T, bf16>) {
    *p++ = 'b';
    *p++ = '2';
  } else if constexpr (std::is_same_v<T, f16>) {
    *p++ = 'h';
    *p++ = '2';
  } else {
    *p++ = std::is_floating_point_v<T> ? 'f'
           : std::is_same_v<T, bool>   ? '?'
           : std::is_integral_v<T>     ? (std::is_signed_v<T> ? 'i' : 'u')
                                       : 's';
    p += sprintf(p, "%d", int(sizeof(T)));
  }
  *p++ = ' ';
  *p = 0;
}
template <class... A>
const char* sig(void (*)(A...)) {
  static char b[512];
  char* p = b;
  *p = 0;
  (sig1<std::remove_cv_t<A>>(p), ...);
  return b;
}
}  // namespace emulator

#define EMULATOR_EXPORT(ID, ...)                                                                                     \
  extern "C" int emulator_launch_##ID(const unsigned* g, const unsigned* b, size_t s, void** a, int o, unsigned r, int f) { \
    return emulator::launch(__VA_ARGS__, g, b, s, a, o, r, f);                                                          \
  }                                                                                                                  \
  extern "C" const char* emulator_sig_##ID() { return emulator::sig(__VA_ARGS__); }
extern "C" inline __attribute__((used, visibility("default"))) const char* emulator_error() { return emulator::S.err; }
extern "C" inline __attribute__((used, visibility("default"))) uint64_t emulator_switches() { return emulator::S.switches; }

#define threadIdx (emulator::S.cur->tid)
#define blockIdx (emulator::S.bid)
#define blockDim (emulator::S.bdim)
#define gridDim (emulator::S.gdim)
static const int warpSize = 32;
#define __syncthreads() emulator::sync_block(__LINE__)
#undef assert
#define assert(c) ((c) ? (void)0 : emulator::fail("assert(%s), line %d", #c, __LINE__))

// ---------------------------------------------------------------- warp collectives
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::collective(mask, nullptr, [](void**, uint32_t) {});
}
namespace emulator {
template <class T, class Src>
inline T shfl(unsigned mask, T v, int width, Src src) {
  struct X {
    T in, out;
    int from;
  } x{v, v, 0};
  int lane = S.cur->lane, base = lane & ~(width - 1);
  int f = src(lane - base);
  x.from = f < 0 || f >= width ? lane : base + f;
  collective(mask, &x, [](void** s, uint32_t m) {
    for (int i = 0; i < 32; i++)
      if (m >> i & 1) {
        X* a = static_cast<X*>(s[i]);
        if (m >> a->from & 1) a->out = static_cast<X*>(s[a->from])->in;
      }
  });
  return x.out;
}
template <class T, class F>
inline T reduce(unsigned mask, T v, F f) {
  struct X {
    T in, out;
  } x{v, v};
  collective(mask, &x, [f](void** s, uint32_t m) {
    bool first = true;
    T r{};
    for (int i = 0; i < 32; i++)
      if (m >> i & 1) {
        T y = static_cast<X*>(s[i])->in;
        r = first ? y : f(r, y);
        first = false;
      }
    for (int i = 0; i < 32; i++)
      if (m >> i & 1) static_cast<X*>(s[i])->out = r;
  });
  return x.out;
}
}  // namespace emulator
template <class T>
T __shfl_sync(unsigned m, T v, int l, int w = 32) {
  return emulator::shfl(m, v, w, [=](int) { return l & (w - 1); });
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int l, int w = 32) {
  return emulator::shfl(m, v, w, [=](int i) { return i ^ l; });
}
template <class T>
T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
  return emulator::shfl(m, v, w, [=](int i) { return i + int(d); });
}
template <class T>
T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
  return emulator::shfl(m, v, w, [=](int i) { return i - int(d); });
}
inline unsigned __ballot_sync(unsigned m, int p) {
  return emulator::reduce(m, p ? 1u << emulator::S.cur->lane : 0u, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
inline unsigned __reduce_add_sync(unsigned m, unsigned v) {
  return emulator::reduce(m, v, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned m, unsigned v) {
  return emulator::reduce(m, v, [](unsigned a, unsigned b) { return a > b ? a : b; });
}

// ---------------------------------------------------------------- memory, atomics, maths
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
  *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __int_as_float(int x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline float __uint_as_float(unsigned x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline int __float_as_int(float f) {
  int x;
  memcpy(&x, &f, 4);
  return x;
}
inline unsigned __float_as_uint(float f) {
  unsigned x;
  memcpy(&x, &f, 4);
  return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
template <class T, class U>
inline auto min(T a, U b) -> std::common_type_t<T, U> {
  return a < b ? a : b;
}
template <class T, class U>
inline auto max(T a, U b) -> std::common_type_t<T, U> {
  return a > b ? a : b;
}
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }

// cp.async: the copy happens as late as it may, at the wait, so a missing wait shows
namespace emulator {
inline void copy_async(void* to, const void* from, size_t bytes, size_t valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("cp.async of %zu bytes: misaligned", bytes);
  S.cur->pending.push_back({to, from, bytes, valid});
}
inline void commit() {
  auto& f = *S.cur;
  f.commits.push_back(std::move(f.pending));
  f.pending.clear();
}
inline void wait(size_t keep) {
  auto& queue = S.cur->commits;
  while (queue.size() > keep) {
    for (auto& c : queue.front()) {
      memcpy(c.to, c.from, c.valid);
      memset(static_cast<char*>(c.to) + c.valid, 0, c.bytes - c.valid);
    }
    queue.pop_front();
  }
}
}  // namespace emulator

// ---------------------------------------------------------------- bfloat16
namespace emulator {
inline uint16_t bf16_of_float(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(0x7fff);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline uint16_t f16_of_float(float f) {
  _Float16 h = _Float16(f);
  uint16_t b;
  memcpy(&b, &h, 2);
  return b;
}
inline float float_of_f16(uint16_t b) {
  _Float16 h;
  memcpy(&h, &b, 2);
  return float(h);
}
inline float float_of_bf16(uint16_t b) {
  uint32_t u = uint32_t(b) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
template <class T>
inline float float_of(uint16_t b) {
  return T::MANTISSA == 10 ? float_of_f16(b) : float_of_bf16(b);
}
}  // namespace emulator

// ---------------------------------------------------------------- tensor cores
namespace emulator {
// D(16xN) = A(16xK) B(KxN) + D on full arrays; N, K compile-time so the compiler vectorises
template <int M, int N, int K>
inline __attribute__((optimize("O3"))) void mma(float (*__restrict d)[N], const float (*__restrict a)[K],
                                                const float (*__restrict b)[N]) {
  for (int i = 0; i < M; i++)
    for (int k = 0; k < K; k++) {
      float x = a[i][k];
      for (int j = 0; j < N; j++) d[i][j] += x * b[k][j];
    }
}
// mma.sync.aligned.m16n8k16.row.col.f32 of bf16 or f16 with the register layout of the PTX manual
template <class T>
inline void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b) {
  struct X {
    float* d;
    const uint32_t *a, *b;
  } x{d, a, b};
  collective(~0u, &x, [](void** s, uint32_t) {
    float A[16][16], B[16][8], D[16][8];
    for (int l = 0; l < 32; l++) {
      X& x = *static_cast<X*>(s[l]);
      int g = l / 4, t = l % 4;
      for (int r = 0; r < 4; r++)
        for (int h = 0; h < 2; h++) A[g + (r & 1) * 8][t * 2 + h + (r >> 1) * 8] = float_of<T>(uint16_t(x.a[r] >> 16 * h));
      for (int r = 0; r < 2; r++)
        for (int h = 0; h < 2; h++) B[t * 2 + h + r * 8][g] = float_of<T>(uint16_t(x.b[r] >> 16 * h));
      for (int r = 0; r < 4; r++) D[g + (r >> 1) * 8][t * 2 + (r & 1)] = x.d[r];
    }
    mma<16, 8, 16>(D, A, B);
    for (int l = 0; l < 32; l++) {
      X& x = *static_cast<X*>(s[l]);
      int g = l / 4, t = l % 4;
      for (int r = 0; r < 4; r++) x.d[r] = D[g + (r >> 1) * 8][t * 2 + (r & 1)];
    }
  });
}
// mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32: four numbers of K a register, the sums as above
inline void mma_m16n8k32(int* d, const uint32_t* a, const uint32_t* b) {
  struct X {
    int* d;
    const uint32_t *a, *b;
  } x{d, a, b};
  collective(~0u, &x, [](void** s, uint32_t) {
    int8_t A[16][32], B[8][32];
    for (int l = 0; l < 32; l++) {
      X& x = *static_cast<X*>(s[l]);
      int g = l / 4, t = l % 4;
      for (int r = 0; r < 4; r++) memcpy(&A[g + (r & 1) * 8][t * 4 + (r >> 1) * 16], &x.a[r], 4);
      for (int r = 0; r < 2; r++) memcpy(&B[g][t * 4 + r * 16], &x.b[r], 4);
    }
    for (int l = 0; l < 32; l++)
      for (int r = 0; r < 4; r++) {
        const int8_t *row = A[l / 4 + (r >> 1) * 8], *column = B[l % 4 * 2 + (r & 1)];
        int sum = static_cast<X*>(s[l])->d[r];
        for (int k = 0; k < 32; k++) sum += row[k] * column[k];
        static_cast<X*>(s[l])->d[r] = sum;
      }
  });
}
// ldmatrix.sync.aligned.m8n8.xN[.trans].shared.b16: lane 8*i+j gives the address of row j of matrix i
template <int N, bool TRANS>
inline void ldmatrix(uint32_t* r, const void* row) {
  struct X {
    uint32_t* r;
    const uint16_t* p;
  } x{r, static_cast<const uint16_t*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: row address not 16-byte aligned");
  collective(~0u, &x, [](void** s, uint32_t) {
    for (int i = 0; i < N; i++)
      for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4;
        auto at = [&](int row, int col) { return uint32_t(static_cast<X*>(s[8 * i + row])->p[col]); };
        static_cast<X*>(s[l])->r[i] = TRANS ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
      }
  });
}
// wgmma: nothing is read or written before it is waited for. A warp's rows of the product are its own, so that no warp waits for
// another here; that all four take part is not checked.
inline const char* permuted(uint64_t address, int width) {  // 16-byte pieces, by the bits above them
  uint64_t at = address - reinterpret_cast<uint64_t>(S.dyn);
  if (at >= MAX_DYN_SMEM) fail("wgmma: a tile outside dynamic shared memory");
  return S.dyn + (at ^ (at >> 7 & (width == 128 ? 7 : 3)) << 4);
}
template <class T, int WIDTH, bool DOWN>
inline void run_product(Fiber* lanes) {
  float A[16][16], B[16][64], D[16][64];
  auto op = [&](int l) -> Fiber::Product& { return lanes[l].products.front().front(); };
  uint64_t b = op(0).columns;
  for (int k = 0; k < 16; k++)
    for (int n = 0; n < 64; n++) {
      uint64_t at = DOWN ? k * WIDTH + n * 2 : n * WIDTH + k * 2;
      uint16_t bits;
      memcpy(&bits, permuted(b + at, WIDTH), 2);
      B[k][n] = float_of<T>(bits);
    }
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4;
    if (op(l).columns != b) fail("wgmma: lanes name different tiles");
    for (int r = 0; r < 4; r++)
      for (int h = 0; h < 2; h++) A[g + (r & 1) * 8][t * 2 + h + (r >> 1) * 8] = float_of<T>(uint16_t(op(l).a[r] >> 16 * h));
    const float* d = static_cast<float*>(op(l).d);
    for (int i = 0; i < 32; i++) D[g + (i >> 1 & 1) * 8][i / 4 * 8 + t * 2 + (i & 1)] = op(l).add ? d[i] : 0;
  }
  mma<16, 64, 16>(D, A, B);
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 32; i++)
      static_cast<float*>(op(l).d)[i] = D[l / 4 + (i >> 1 & 1) * 8][i / 4 * 8 + l % 4 * 2 + (i & 1)];
}
template <int N>
inline void run_product_of_bytes(Fiber* lanes) {
  int8_t A[16][32], B[N][32];
  auto op = [&](int l) -> Fiber::Product& { return lanes[l].products.front().front(); };
  for (int k = 0; k < 32; k += 16) {
    for (int n = 0; n < N; n++) memcpy(&B[n][k], permuted(op(0).columns + n * 64 + k, 64), 16);
    for (int m = 0; m < 16; m++) memcpy(&A[m][k], permuted(op(0).rows + m * 64 + k, 64), 16);
  }
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < N / 2; i++) {
      const int8_t *row = A[l / 4 + (i >> 1 & 1) * 8], *column = B[i / 4 * 8 + l % 4 * 2 + (i & 1)];
      int sum = 0;
      for (int k = 0; k < 32; k++) sum += row[k] * column[k];
      static_cast<int*>(op(l).d)[i] += sum;
    }
}
template <class T, int WIDTH, bool DOWN>
inline void product(float* d, const uint32_t* a, uint64_t b, bool add) {
  S.cur->products.back().push_back({d, a, 0, b, add, run_product<T, WIDTH, DOWN>});
}
template <int N>
inline void product_of_bytes(int* d, uint64_t a, uint64_t b) {
  uint64_t rows = a + (S.cur - S.f) % 128 / 32 * 16 * 64;
  S.cur->products.back().push_back({d, nullptr, rows, b, true, run_product_of_bytes<N>});
}
inline void products_commit() { S.cur->products.push_back({}); }
inline void products_wait(size_t keep) {
  collective(~0u, nullptr, [keep](void**, uint32_t) {
    Fiber* lanes = &S.f[(S.cur - S.f) / 32 * 32];
    while (lanes->products.size() > keep + 1) {
      for (; !lanes->products.front().empty();) {
        lanes->products.front().front().run(lanes);
        for (int l = 0; l < 32; l++) lanes[l].products.front().erase(lanes[l].products.front().begin());
      }
      for (int l = 0; l < 32; l++) lanes[l].products.pop_front();
    }
  });
}
}  // namespace emulator

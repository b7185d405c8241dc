// The cuBLASLt calls that the backend makes, on the CPU, with the library's own ABI and attribute numbers, so that the ctypes
// wrapper itself is under test. Naive, column-major as cuBLAS is, sums in float; TF32 cuts operands to 10 bits of mantissa; GELU
// is the tanh form. Status 7 is CUBLAS_STATUS_INVALID_VALUE, 15 CUBLAS_STATUS_NOT_SUPPORTED.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

enum { DESTROYED = -1, F32 = 0, F16 = 2, BF16 = 14, COMPUTE_32F = 68, TF32 = 77 };
struct Description {
  int compute, scale, transpose_a = 0, transpose_b = 0, epilogue = 1;
  void* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t step;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment = 256;
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

static float bf16(uint16_t bits) {
  uint32_t u = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}
static float get(int type, const void* from, size_t i) {
  if (type == F32) return static_cast<const float*>(from)[i];
  return type == BF16 ? bf16(static_cast<const uint16_t*>(from)[i]) : float(static_cast<const _Float16*>(from)[i]);
}
static void put(int type, void* to, size_t i, float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (type == F32)
    static_cast<float*>(to)[i] = x;
  else if (type == BF16)
    static_cast<uint16_t*>(to)[i] = uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  else
    static_cast<_Float16*>(to)[i] = _Float16(x);
}
static float cut(float x, bool tf32) {
  if (!tf32) return x;
  uint32_t u;
  memcpy(&u, &x, 4);
  u = (u + 0xfff + (u >> 13 & 1)) & ~0x1fffu;
  memcpy(&x, &u, 4);
  return x;
}
static int check(const Description* d, const Layout* a, const Layout* b, const Layout* c, const Layout* y) {
  if (d->compute == DESTROYED) return 7;
  for (const Layout* layout : {a, b, c, y})
    if (layout->type == DESTROYED) return 7;
  uint64_t m = d->transpose_a ? a->columns : a->rows, k = d->transpose_a ? a->rows : a->columns;
  uint64_t n = d->transpose_b ? b->rows : b->columns, k2 = d->transpose_b ? b->columns : b->rows;
  bool fit = k == k2 && y->rows == m && y->columns == n && c->rows == m && c->columns == n && a->type == b->type;
  if (!fit || c->type != y->type || (d->compute == TF32 && a->type != F32)) return 7;
  return a->step * (a->type == F32 ? 4 : 2) % 16 ? 15 : 0;
}

static int alive = 0;  // descriptions and layouts; one that is destroyed stays in memory, so that using it is an error and no luck

extern "C" {
int cublasLtCreate(void** handle) {
  *handle = reinterpret_cast<void*>(1);
  return 0;
}
int cublasLtMatmulDescCreate(Description** d, int compute, int scale) {
  if ((compute != COMPUTE_32F && compute != TF32) || scale != F32) return 7;
  *d = new Description{compute, scale};
  alive++;
  return 0;
}
int cublasLtMatmulDescDestroy(Description* d) {
  if (d->compute == DESTROYED) return 7;
  d->compute = DESTROYED;
  alive--;
  return 0;
}
// Not cuBLASLt's: what a captured call keeps, since the library reads descriptions and layouts when it is called and not when it is
// played; and how many of both there are.
Description* snapshot(const Description* d) { return new Description(*d); }
Layout* snapshot_layout(const Layout* l) { return new Layout(*l); }
int alive_count() { return alive; }
int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t size) {
  int* words[] = {&d->transpose_a, &d->transpose_b, nullptr, nullptr, &d->epilogue};
  if (attribute == 8 && size == 8)
    memcpy(&d->bias, value, 8);
  else if ((attribute == 3 || attribute == 4 || attribute == 7) && size == 4)
    memcpy(words[attribute - 3], value, 4);
  else
    return 7;
  return 0;
}
int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t step) {
  if (step < int64_t(rows)) return 7;
  *l = new Layout{type, rows, columns, step};
  alive++;
  return 0;
}
int cublasLtMatrixLayoutDestroy(Layout* l) {
  if (l->type == DESTROYED) return 7;
  l->type = DESTROYED;
  alive--;
  return 0;
}
int cublasLtMatmulPreferenceCreate(Preference** p) {
  *p = new Preference;
  return 0;
}
int cublasLtMatmulPreferenceDestroy(Preference* p) {
  delete p;
  return 0;
}
int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t size) {
  if (attribute == 1 && size == 8)
    memcpy(&p->workspace, value, 8);
  else if (attribute >= 5 && attribute <= 8 && size == 4)
    memcpy(&p->alignment, value, 4);
  else
    return 7;
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Description* d, Layout* a, Layout* b, Layout* c, Layout* y, Preference* p, int count,
                                   Heuristic* heuristic, int* found) {
  *found = 0;
  if (int status = check(d, a, b, c, y)) return status;
  if (p->alignment > 16) return 15;
  *found = count < 2 ? count : 2;
  memset(heuristic, 0, *found * sizeof *heuristic);
  for (int i = 0; i < *found; i++) heuristic[i].workspace = p->workspace < 1024 ? p->workspace : 1024 * (i + 1);
  return 0;
}
int cublasLtMatmul(void*, Description* d, const float* alpha, const void* A, Layout* a, const void* B, Layout* b,
                   const float* beta, const void* C, Layout* c, void* Y, Layout* y, const void*, void* workspace, size_t size,
                   void*) {
  if (int status = check(d, a, b, c, y)) return status;
  for (const void* address : {A, B, C, const_cast<const void*>(Y)})
    if (reinterpret_cast<uintptr_t>(address) % 16) return 15;
  memset(workspace, 0x7f, size);
  uint64_t k = d->transpose_a ? a->rows : a->columns;
  std::vector<float> left(y->rows * k), right(k);
  for (uint64_t i = 0; i < y->rows; i++)
    for (uint64_t q = 0; q < k; q++)
      left[i * k + q] = cut(get(a->type, A, d->transpose_a ? q + i * a->step : i + q * a->step), d->compute == TF32);
  for (uint64_t j = 0; j < y->columns; j++) {
    for (uint64_t q = 0; q < k; q++)
      right[q] = cut(get(b->type, B, d->transpose_b ? j + q * b->step : q + j * b->step), d->compute == TF32);
    for (uint64_t i = 0; i < y->rows; i++) {
      float x = 0;
      for (uint64_t q = 0; q < k; q++) x += left[i * k + q] * right[q];
      x *= *alpha;
      if (*beta != 0) x += *beta * get(c->type, C, i + j * c->step);
      if (d->epilogue & 4) {
        if (!d->bias) return 7;
        x += get(y->type, d->bias, i);
      }
      if (d->epilogue & 32) x = 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
      put(y->type, Y, i + j * y->step, x);
    }
  }
  return 0;
}
}

// emulator.c: AMX tiles for a CPU that has none, as a library to preload (LD_PRELOAD).
// An AMX instruction is an illegal one there: the handler of SIGILL decodes it, does it in C and goes on behind it. What the
// hardware refuses (#UD, #GP) ends the process by SIGILL, with a line on stderr that says why.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <immintrin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW = 64 };

typedef struct { uint8_t byte[ROWS][ROW]; } Tile;
typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t colsb[TILES], more[8]; uint8_t rows[TILES], rest[8]; } Config;

// A thread's own: a new thread has no configuration.
static __thread Config config;
static __thread Tile tiles[TILES] __attribute__((aligned(64)));
static volatile int permitted;  // by arch_prctl, to the process

// ---------------------------------------------------------------- instructions
enum { VEX_NP, VEX_66, VEX_F3, VEX_F2 };

typedef struct {
  int opcode, prefix, reg, rm, vvvv, memory, sib, length;
  uint64_t address, stride;  // of a row from the last
} Instruction;

static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static uint64_t value_of(const greg_t* registers, int number) { return (uint64_t)registers[places[number]]; }

static int64_t displacement(const uint8_t* at, int bytes) {
  int8_t one;
  int32_t four;
  memcpy(&one, at, 1);
  if (bytes != 4) return bytes ? one : 0;
  memcpy(&four, at, 4);
  return four;
}

// Whether the bytes at `code` are VEX.128.0F38.W0 of one of AMX's opcodes, and its operands.
static int decode(const uint8_t* code, const greg_t* registers, Instruction* in) {
  if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84)) return 0;
  const int R = !(code[1] & 0x80), X = !(code[1] & 0x40), B = !(code[1] & 0x20), modrm = code[4], mod = modrm >> 6;
  in->opcode = code[3], in->prefix = code[2] & 3, in->vvvv = ~(code[2] >> 3) & 15;
  if (in->opcode != 0x49 && in->opcode != 0x4B && in->opcode != 0x5C && in->opcode != 0x5E) return 0;
  in->reg = (modrm >> 3 & 7) | R << 3, in->rm = (modrm & 7) | B << 3;
  in->memory = mod != 3, in->sib = in->memory && (modrm & 7) == 4, in->length = 5;
  in->address = in->stride = 0;
  if (!in->memory) return 1;
  int bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0, base = in->rm, relative = 0;
  if (in->sib) {
    const int sib = code[5], index = (sib >> 3 & 7) | X << 3;
    base = (sib & 7) | B << 3, in->length = 6;
    if (index != 4) in->stride = value_of(registers, index) << (sib >> 6);
    if (mod == 0 && (sib & 7) == 5) base = -1, bytes = 4;
  } else if (mod == 0 && (modrm & 7) == 5) {
    base = -1, bytes = 4, relative = 1;
  }
  in->address = displacement(code + in->length, bytes) + (base < 0 ? 0 : value_of(registers, base));
  in->length += bytes;
  if (relative) in->address += (uint64_t)code + in->length;
  if (in->opcode == 0x49) in->address += in->stride;  // the index of a configuration's address is one as ever
  return 1;
}

// lea disp(base), register: what mostly stands between them. Whether it was one, and then it is done.
static int add(const uint8_t* code, greg_t* registers) {
  const int mod = code[2] >> 6, base = (code[2] & 7) | (code[0] & 1) << 3, to = (code[2] >> 3 & 7) | (code[0] & 4) << 1;
  if ((code[0] & 0xFA) != 0x48 || code[1] != 0x8D || (mod != 1 && mod != 2) || (code[2] & 7) == 4) return 0;
  registers[places[to]] = registers[places[base]] + displacement(code + 3, mod == 1 ? 1 : 4);
  registers[REG_RIP] += mod == 1 ? 4 : 7;
  return 1;
}

static const char* configure(const Config* from) {
  Config given, none = {0};
  memcpy(&given, from, sizeof given);
  if (given.palette > 1) return "a palette that is neither 0 nor 1";
  if (given.palette == 1) {
    if (memcmp(given.reserved, none.reserved, 14) || memcmp(given.more, none.more, 16) || memcmp(given.rest, none.rest, 8))
      return "a reserved byte of the configuration is not 0";
    if (given.start_row) return "a start row, which this emulator does not know";
    for (int t = 0; t < TILES; t++) {
      if (given.colsb[t] > ROW || given.rows[t] > ROWS) return "a tile of more than 16 rows of 64 bytes";
      if (!given.colsb[t] != !given.rows[t]) return "a tile with rows and no columns, or columns and no rows";
    }
  }
  config = given.palette ? given : none;
  memset(tiles, 0, sizeof tiles);
  return NULL;
}

static const char* check(int tile) {
  if (tile >= TILES) return "a tile beyond the eighth";
  if (!config.rows[tile]) return "a tile with no rows in the configuration";
  return config.colsb[tile] % 4 ? "a tile whose row is no multiple of 4 bytes" : NULL;
}

static void load(int tile, const uint8_t* from, uint64_t stride) {
  memset(&tiles[tile], 0, sizeof(Tile));
  for (int r = 0; r < config.rows[tile]; r++) memcpy(tiles[tile].byte[r], from + r * stride, config.colsb[tile]);
}

static void store(int tile, uint8_t* to, uint64_t stride) {
  for (int r = 0; r < config.rows[tile]; r++) memcpy(to + r * stride, tiles[tile].byte[r], config.colsb[tile]);
}

static void write_back(Tile* c, int rows, int columns, int32_t new[ROWS][16]) {
  for (int m = 0; m < rows; m++) memcpy(c->byte[m], new[m], 4 * columns);
}

// c[m][n] += sum over k and i of a[m][4k + i] b[k][4n + i], mod 2^32
static void dot_int8(Tile* c, const Tile* a, const Tile* b, int rows, int depth, int columns) {
  __m256i wide[ROWS][4];  // of b, 16 bits each
  int32_t new[ROWS][16];
  for (int k = 0; k < depth; k++)
    for (int v = 0; v < 4; v++) wide[k][v] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(b->byte[k] + 16 * v)));
  for (int m = 0; m < rows; m++) {
    __m256i pairs[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int k = 0; k < depth; k++) {
      int32_t four;
      memcpy(&four, a->byte[m] + 4 * k, 4);
      const __m256i left = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
      for (int v = 0; v < 4; v++) pairs[v] = _mm256_add_epi32(pairs[v], _mm256_madd_epi16(left, wide[k][v]));
    }
    for (int v = 0; v < 4; v++) {
      uint32_t two[8], old[4];
      memcpy(two, &pairs[v], 32);
      memcpy(old, c->byte[m] + 16 * v, 16);
      for (int n = 0; n < 4; n++) new[m][4 * v + n] = (int32_t)(old[n] + two[2 * n] + two[2 * n + 1]);
    }
  }
  write_back(c, rows, columns, new);
}

// c[m][n] += (sum over k of a[m][2k] b[k][2n]) + (sum over k of a[m][2k + 1] b[k][2n + 1]): fused, subnormal numbers as zero
__attribute__((noinline)) static void dot_bf16(Tile* c, const Tile* a, const Tile* b, int rows, int depth, int columns) {
  int32_t new[ROWS][16];
  const __m256i high = _mm256_set1_epi32((int)0xFFFF0000);
  for (int m = 0; m < rows; m++) {
    for (int v = 0; v < 2; v++) {
      __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps(), old;
      for (int k = 0; k < depth; k++) {
        int32_t two;
        memcpy(&two, a->byte[m] + 4 * k, 4);
        const __m256i left = _mm256_set1_epi32(two), right = _mm256_loadu_si256((const __m256i*)(b->byte[k] + 32 * v));
        even = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(left, 16)),
                               _mm256_castsi256_ps(_mm256_slli_epi32(right, 16)), even);
        odd = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(left, high)),
                              _mm256_castsi256_ps(_mm256_and_si256(right, high)), odd);
      }
      memcpy(&old, c->byte[m] + 32 * v, 32);
      old = _mm256_add_ps(old, _mm256_add_ps(even, odd));
      memcpy(new[m] + 8 * v, &old, 32);
    }
  }
  write_back(c, rows, columns, new);
}

// ModRM's reg += its r/m times vvvv
static const char* multiply(const Instruction* in) {
  const int c = in->reg, a = in->rm, b = in->vvvv;
  const char* wrong = check(c);
  if (!wrong) wrong = check(a);
  if (!wrong) wrong = check(b);
  if (wrong) return wrong;
  if (c == a || a == b || c == b) return "a product of a tile with itself";
  if (config.colsb[c] != config.colsb[b] || config.rows[c] != config.rows[a] || config.colsb[a] / 4 != config.rows[b])
    return "a product of tiles whose shapes do not fit";
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9FC0);  // to nearest even, subnormal operands and results zero, no exceptions
  const int rows = config.rows[c], depth = config.rows[b], columns = config.colsb[c] / 4;
  (in->opcode == 0x5E ? dot_int8 : dot_bf16)(&tiles[c], &tiles[a], &tiles[b], rows, depth, columns);
  _mm_setcsr(before);
  return NULL;
}

// Do an instruction; what the hardware has against it, in words.
static const char* execute(const Instruction* in) {
  const int release = in->opcode == 0x49 && in->prefix == VEX_NP && !in->memory && in->reg == 0 && in->rm == 0 && !in->vvvv;
  const int settings = in->opcode == 0x49 && in->memory && in->reg == 0 && !in->vvvv;
  const int to_config = settings && in->prefix == VEX_NP, of_config = settings && in->prefix == VEX_66;
  const int zero = in->opcode == 0x49 && in->prefix == VEX_F2 && !in->memory && in->rm == 0 && !in->vvvv;
  const int move = in->opcode == 0x4B && in->sib && in->prefix != VEX_NP && !in->vvvv;
  const int int8 = in->opcode == 0x5E && in->prefix == VEX_F2 && !in->memory;
  const int bf16 = in->opcode == 0x5C && in->prefix == VEX_F3 && !in->memory;
  if (!(release || to_config || of_config || zero || move || int8 || bf16))
    return "an AMX instruction that is not emulated, or a wrong one";
  if (!permitted) return "no permission for the tiles: arch_prctl has not been called";
  if (to_config) return configure((const Config*)in->address);
  if (of_config) return memcpy((void*)in->address, &config, sizeof config), NULL;
  if (release) return memset(&config, 0, sizeof config), memset(tiles, 0, sizeof tiles), NULL;
  if (!config.palette) return "no tile configuration in this thread";
  if (int8 || bf16) return multiply(in);
  const char* wrong = check(in->reg);
  if (wrong) return wrong;
  if (zero)
    memset(&tiles[in->reg], 0, sizeof(Tile));
  else if (in->prefix == VEX_F3)
    store(in->reg, (uint8_t*)in->address, in->stride);
  else
    load(in->reg, (const uint8_t*)in->address, in->stride);
  return NULL;
}

// ---------------------------------------------------------------- the signal
static struct sigaction former;  // what the program itself wants of SIGILL

static int set_action(int number, const struct sigaction* new, struct sigaction* old) {
  static int (*real)(int, const struct sigaction*, struct sigaction*);
  if (!real) real = (int (*)(int, const struct sigaction*, struct sigaction*))dlsym(RTLD_NEXT, "sigaction");
  return real(number, new, old);
}

static void pass_on(int number, siginfo_t* info, void* context) {
  if (former.sa_flags & SA_SIGINFO) {
    former.sa_sigaction(number, info, context);
  } else if (former.sa_handler != SIG_DFL && former.sa_handler != SIG_IGN) {
    former.sa_handler(number);
  } else {
    struct sigaction none = {.sa_handler = SIG_DFL};
    set_action(SIGILL, &none, NULL);
    if (info->si_code <= 0) raise(SIGILL);  // not by an instruction, which would now fail again
  }
}

static void on_illegal(int number, siginfo_t* info, void* context) {
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  int done = 0;
  Instruction in;
  // Those that follow are done too: a signal costs more than most of them.
  while (info->si_code > 0) {
    const uint8_t* code = (const uint8_t*)registers[REG_RIP];
    if (done && add(code, registers)) continue;
    if (!decode(code, registers, &in)) break;
    const char* wrong = execute(&in);
    if (wrong && done) return;  // it fails again, as the first
    if (wrong) {
      char line[160];
      const int length = snprintf(line, sizeof line, "amx_on_cpu: %s\n", wrong);
      if (write(2, line, length) < 0) abort();
      break;
    }
    registers[REG_RIP] += in.length;
    done = 1;
  }
  if (!done) pass_on(number, info, context);
}

// The program's own handlers of SIGILL (Python's faulthandler has one) come after this one.
int sigaction(int number, const struct sigaction* new, struct sigaction* old) {
  if (number != SIGILL) return set_action(number, new, old);
  const struct sigaction before = former;
  if (new) former = *new;
  if (old) *old = before;
  return 0;
}

__sighandler_t signal(int number, __sighandler_t handler) {
  struct sigaction new = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}

// arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) is granted; all else goes to the kernel.
long syscall(long number, ...) {
  static long (*real)(long, ...);
  long given[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) given[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_arch_prctl && given[0] == 0x1023 && given[1] == 18) {
    permitted = 1;
    return 0;
  }
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}

__attribute__((constructor)) static void install(void) {
  struct sigaction ours = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
  set_action(SIGILL, &ours, &former);
}

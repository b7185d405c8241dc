"""What Numba has no name for, as LLVM instructions: pointers, atomics, calls by address, vectors.

Kernels are C functions kernel(arguments, block, worker): `arguments` is the address of int64 numbers, which are addresses and
shapes. So that any thread can run any kernel, and a kernel is compiled once (compiled.py).
"""

import itertools
import os

from llvmlite import binding, ir

from .compiled import cgutils, intrinsic, types

I1, I8, I16, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
# What Numba compiles for: this machine, or what its variables say.
_asked = os.environ.get("NUMBA_CPU_FEATURES", "" if os.environ.get("NUMBA_CPU_NAME") == "generic" else None)
_flags = (binding.get_host_cpu_features().flatten() if _asked is None else _asked).split(",")
FEATURES = {flag[1:] for flag in _flags if flag.startswith("+")}
X86 = binding.get_process_triple().split("-")[0] in ("x86_64", "amd64")
BF16 = {"avx512f", "avx512bf16"} <= FEATURES
FUSED = "fma" in FEATURES or "neon" in FEATURES  # else llvm.fma is a call of the C library's


def pointer_to(element, name):
    """An intrinsic: an integer address as a pointer, for numba.carray."""

    def pointer(typingctx, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(getattr(types, element))(types.int64), codegen

    pointer.__name__ = name
    return intrinsic(pointer)


floats, integers, bytes_, words = (
    pointer_to(element, name)
    for element, name in (
        ("float32", "floats"),
        ("int32", "integers"),
        ("int8", "bytes"),
        ("int64", "words"),
    )
)
halves = pointer_to("uint16", "halves")


@intrinsic
def float_of(typingctx, bits):
    """The float32 of these 32 bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def bits_of(typingctx, x):
    """The 32 bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


def _call_void(builder, name, kinds, args):
    builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name), args)


@intrinsic
def allocate(typingctx, size):
    """The address of so many bytes from the C library, to be freed: Numba's arrays would need Numba's runtime."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I8.as_pointer(), [I64]), "malloc")
        return builder.ptrtoint(builder.call(function, args), I64)

    return types.int64(types.int64), codegen


@intrinsic
def free(typingctx, address):
    """Give back what allocate gave."""

    def codegen(context, builder, signature, args):
        _call_void(builder, "free", [I8.as_pointer()], [builder.inttoptr(args[0], I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address."""

    def codegen(context, builder, signature, args):
        _prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _prefetch(builder, address):
    pointer = builder.inttoptr(address, I8.as_pointer())
    _call_void(builder, "llvm.prefetch.p0", [I8.as_pointer(), I32, I32, I32], [pointer, I32(0), I32(2), I32(1)])


@intrinsic
def pause(typingctx):
    """Tell the core that it spins."""

    def codegen(context, builder, signature, args):
        if X86:
            _call_void(builder, "llvm.x86.sse2.pause", [], [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def load_word(typingctx, address):
    """An atomic load of an int64."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_word(typingctx, address, value):
    """An atomic store of an int64."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add_word(typingctx, address, value):
    """Add to an int64, atomically; what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def swap_word(typingctx, address, old, new):
    """Replace an int64 if it is `old`, atomically; whether it was."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def call_kernel(typingctx, function, arguments, block, worker):
    """Call the kernel at an address."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


def _pass_word(name):
    """An intrinsic: the C library's read or write of 8 bytes, the number 1; whether they were passed."""

    @intrinsic
    def pass_word(typingctx, file):
        def codegen(context, builder, signature, args):
            size = I32 if os.name == "nt" else I64
            kind = ir.FunctionType(size, [I32, I8.as_pointer(), size])
            word = builder.bitcast(cgutils.alloca_once_value(builder, I64(1)), I8.as_pointer())
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.icmp_signed("==", builder.call(function, [builder.trunc(args[0], I32), word, size(8)]), size(8))

        return types.boolean(types.int64), codegen

    return pass_word


@intrinsic
def this_cpu(typingctx):
    """Which CPU this thread is on; on Linux."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_getcpu")
        return builder.sext(builder.call(function, []), I64)

    return types.int64(), codegen


@intrinsic
def allow_cpus(typingctx, thread, size, mask):
    """Let a thread run on the CPUs whose bits are set in so many bytes at an address; on Linux."""

    def codegen(context, builder, signature, args):
        thread, size, mask = args
        kind = ir.FunctionType(I32, [I32, I64, I8.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_setaffinity")
        builder.call(function, [builder.trunc(thread, I32), size, builder.inttoptr(mask, I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def allowed_cpus(typingctx, size, mask):
    """Set the bits of the CPUs that this thread may run on, in so many bytes at an address; whether that could be; on Linux."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(I32, [I32, I64, I8.as_pointer()])
        function = cgutils.get_or_insert_function(builder.module, kind, "sched_getaffinity")
        failed = builder.call(function, [I32(0), args[0], builder.inttoptr(args[1], I8.as_pointer())])
        return builder.icmp_signed("==", failed, I32(0))

    return types.boolean(types.int64, types.int64), codegen


read_word, write_word = (_pass_word(f"_{name}" if os.name == "nt" else name) for name in ("read", "write"))

LANES = ir.VectorType(F32, 16)
INTEGERS = ir.VectorType(I32, 16)


def _lanes(builder, address, kind=LANES):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def _spread(builder, x, kind=LANES):
    """16 lanes of one number."""
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, x, I32(0)), nothing, ir.Constant(INTEGERS, [0] * 16))


class Lanes:
    """16 float32 in a register, for a function written for arrays: run on Lanes, each of its operations emits an instruction.

    So that a definition in backends/bitwise.py becomes 16 numbers at a time in one way only: what LLVM makes of a loop over
    numbers is 8 at a time, and depends on the loop.
    """

    __array_ufunc__ = None  # a NumPy number leaves `number * lanes` to this class

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _emit(self, instruction, *values):
        return Lanes(self.builder, getattr(self.builder, instruction)(*values))

    def _value(self, x):
        return x.value if isinstance(x, Lanes) else ir.Constant(LANES, [float(x)] * 16)

    def __add__(self, x):
        return self._emit("fadd", self.value, self._value(x))

    def __sub__(self, x):
        return self._emit("fsub", self.value, self._value(x))

    def __mul__(self, x):
        return self._emit("fmul", self.value, self._value(x))

    def __truediv__(self, x):
        return self._emit("fdiv", self.value, self._value(x))

    def __radd__(self, x):
        return self._emit("fadd", self._value(x), self.value)

    def __rsub__(self, x):
        return self._emit("fsub", self._value(x), self.value)

    def __rmul__(self, x):
        return self._emit("fmul", self._value(x), self.value)

    def __rtruediv__(self, x):
        return self._emit("fdiv", self._value(x), self.value)

    def __neg__(self):
        return self._emit("fneg", self.value)

    def __lt__(self, x):
        return self.builder.fcmp_ordered("<", self.value, self._value(x))

    def __gt__(self, x):
        return self.builder.fcmp_ordered(">", self.value, self._value(x))

    def where(self, condition, a, b):
        return self._emit("select", condition, self._value(a), self._value(b))

    def fused(self, b, c):
        """self b + c, rounded once where the machine can."""
        if not FUSED:
            return self * b + c
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(LANES, [LANES] * 3), "llvm.fma.v16f32")
        return self._emit("call", function, [self.value, self._value(b), self._value(c)])

    def root(self):
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(LANES, [LANES]), "llvm.sqrt.v16f32")
        return self._emit("call", function, [self.value])

    def power(self):
        """2^n, as bitwise.power."""
        bits = self.builder.bitcast(self.value, INTEGERS)
        bits = self.builder.sub(bits, ir.Constant(INTEGERS, [0x4B400000 - 127] * 16))
        return self._emit("bitcast", self.builder.shl(bits, ir.Constant(INTEGERS, [23] * 16)), LANES)

    def scaled(self, shifted):
        """self 2^n, n as bitwise.power reads it, by adding to the exponent: both must be far from where it ends."""
        exponent = self.builder.shl(self.builder.bitcast(shifted.value, INTEGERS), ir.Constant(INTEGERS, [23] * 16))
        return self._emit("bitcast", self.builder.add(self.builder.bitcast(self.value, INTEGERS), exponent), LANES)


def lanes_of(functions):
    """An intrinsic: functions[kind](Lanes) of `count` float32 at an address, a multiple of 16, in place."""

    @intrinsic
    def every(typingctx, x, count, kind):
        def codegen(context, builder, signature, args):
            x, count, kind = args
            done = builder.append_basic_block()
            choice = builder.switch(kind, done)
            for number, function in enumerate(functions):
                choice.add_case(I64(number), builder.append_basic_block())
                builder.position_at_end(builder.block.function.blocks[-1])
                with cgutils.for_range(builder, builder.udiv(count, I64(16)), intp=I64) as loop:
                    place = builder.add(x, builder.mul(loop.index, I64(64)))
                    _store(builder, function(Lanes(builder, _lanes(builder, place))).value, place)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return every


def exponentials(exp):
    """An intrinsic: x (rows, 32) -> exp(x - most) in place, which `sums` (32,) grow by; float32, all by address."""

    @intrinsic
    def exponentiate(typingctx, x, rows, most, sums):
        def codegen(context, builder, signature, args):
            x, rows, most, sums = args
            largest = [Lanes(builder, _lanes(builder, builder.add(most, I64(64 * half)))) for half in range(2)]
            parts = [cgutils.alloca_once_value(builder, ir.Constant(LANES, [0.0] * 16)) for _ in range(2)]
            with cgutils.for_range(builder, rows, intp=I64) as loop:
                row = builder.add(x, builder.mul(loop.index, I64(128)))
                for half, part in enumerate(parts):
                    place = builder.add(row, I64(64 * half))
                    e = exp(Lanes(builder, _lanes(builder, place)) - largest[half])
                    _store(builder, e.value, place)
                    builder.store((e + Lanes(builder, builder.load(part))).value, part)
            for half, part in enumerate(parts):
                place = builder.add(sums, I64(64 * half))
                _store(builder, builder.fadd(_lanes(builder, place), builder.load(part)), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return exponentiate


def combine_lanes(diagonals):
    """An intrinsic: 16 floats out = (c0 + (c1 2^-8 + ...)) (scale column_scales) + bias from 16 int32 of each diagonal.

    sum_row is the distance in bytes from a diagonal to the next; all else are addresses, but for scale.
    """

    @intrinsic
    def combine(typingctx, sums, sum_row, scale, column_scales, bias, out):
        def codegen(context, builder, signature, args):
            sums, sum_row, scale, column_scales, bias, out = args
            places = [builder.add(sums, builder.mul(sum_row, I64(n))) for n in range(diagonals)]
            terms = [builder.sitofp(_lanes(builder, place, INTEGERS), LANES) for place in places]
            scaled = [
                builder.fmul(term, ir.Constant(LANES, [2.0 ** (-8 * n)] * 16)) if n else term for n, term in enumerate(terms)
            ]
            total = scaled.pop()
            while scaled:
                total = builder.fadd(scaled.pop(), total)
            factor = builder.fmul(_spread(builder, scale), _lanes(builder, column_scales))
            total = builder.fadd(builder.fmul(total, factor), _lanes(builder, bias))
            builder.store(total, builder.inttoptr(out, LANES.as_pointer()), align=4)
            return context.get_dummy_value()

        words_ = [types.int64] * 3
        return types.void(types.int64, types.int64, types.float32, *words_), codegen

    return combine


HALVES = ir.VectorType(I16, 16)


class Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's name for bf16, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, Bfloat)

    def __hash__(self):
        return hash(Bfloat)


def _rounded(builder, x):
    """16 float32 to bf16, nearest even, as the low halves of 16 integers; one instruction where there is one.

    To that one, and to the products of bf16, numbers below 2^-126 are zeros.
    """
    if BF16:
        kind = ir.FunctionType(ir.VectorType(Bfloat(), 16), [LANES])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
        return builder.zext(builder.bitcast(builder.call(function, [x]), HALVES), INTEGERS)

    def same(number):
        return ir.Constant(INTEGERS, [number] * 16)

    bits = builder.bitcast(x, INTEGERS)
    high = builder.lshr(bits, same(16))
    up = builder.add(same(0x7FFF), builder.and_(high, same(1)))
    near = builder.lshr(builder.add(bits, up), same(16))
    return builder.select(builder.fcmp_unordered("uno", x, x), builder.or_(high, same(64)), near)


def _store(builder, x, address):
    builder.store(x, builder.inttoptr(address, x.type.as_pointer()), align=2)


@intrinsic
def round_lanes(typingctx, x, out):
    """16 float32 at an address as 16 bf16 at another."""

    def codegen(context, builder, signature, args):
        _store(builder, builder.trunc(_rounded(builder, _lanes(builder, args[0])), HALVES), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _parts(builder, x, count):
    """16 float32 as a sum of bf16: each the rest of those before it, rounded; as _rounded gives them.

    Three hold all 24 bits of a number between 2^-108 and 2^127; of an infinity the rests are NaN.
    """
    for left in reversed(range(count)):
        part = _rounded(builder, x)
        yield part
        if left:
            x = builder.fsub(x, builder.bitcast(builder.shl(part, ir.Constant(INTEGERS, [16] * 16)), LANES))


def split_lanes(parts):
    """An intrinsic: 16 float32 at an address, times a factor, as parts of 16 bf16, `apart` bytes from one to the next."""

    @intrinsic
    def split(typingctx, x, factor, out, apart):
        def codegen(context, builder, signature, args):
            x, factor, out, apart = args
            scaled = builder.fmul(_lanes(builder, x), _spread(builder, factor))
            for part in _parts(builder, scaled, parts):
                _store(builder, builder.trunc(part, HALVES), out)
                out = builder.add(out, apart)
            return context.get_dummy_value()

        return types.void(types.int64, types.float32, types.int64, types.int64), codegen

    return split


def split_pairs(parts):
    """An intrinsic: 16 pairs of float32, from 16 at one address and 16 at another, as parts of pairs of bf16."""

    @intrinsic
    def split(typingctx, low, high, out, apart):
        def codegen(context, builder, signature, args):
            low, high, out, apart = args
            both = (_parts(builder, _lanes(builder, at), parts) for at in (low, high))
            for first, second in zip(*both, strict=True):
                _store(builder, builder.or_(first, builder.shl(second, ir.Constant(INTEGERS, [16] * 16))), out)
                out = builder.add(out, apart)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return split


@intrinsic
def copy_halves(typingctx, x, factor, out, apart):
    """16 numbers of 16 bits from one address to another; as split_lanes is called."""

    def codegen(context, builder, signature, args):
        _store(builder, _lanes(builder, args[0], HALVES), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), codegen


@intrinsic
def pair_halves(typingctx, low, high, out, apart):
    """16 pairs of 16 bits, from 16 at one address and 16 at another; as split_pairs is called."""

    def codegen(context, builder, signature, args):
        low, high = (builder.zext(_lanes(builder, at, HALVES), INTEGERS) for at in args[:2])
        _store(builder, builder.or_(low, builder.shl(high, ir.Constant(INTEGERS, [16] * 16))), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


def scale_32(kind, parts):
    """An intrinsic: twice 16 numbers of a kind, times a factor, as parts of 32 bf16, `apart` bytes from one to the next.

    In one store each: what then loads all 64 bytes would wait for two.
    """

    @intrinsic
    def scale(typingctx, low, high, factor, out, apart):
        def codegen(context, builder, signature, args):
            low, high, factor, out, apart = args
            scaled = (builder.fmul(_widened(builder, at, kind), _spread(builder, factor)) for at in (low, high))
            for pair in zip(*(_parts(builder, x, parts) for x in scaled), strict=True):
                halves = (builder.trunc(part, HALVES) for part in pair)
                joined = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
                _store(builder, builder.shuffle_vector(*halves, joined), out)
                out = builder.add(out, apart)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), codegen

    return scale


@intrinsic
def scale_lanes(typingctx, x, by, out):
    """16 floats out = x by, by address."""

    def codegen(context, builder, signature, args):
        _store(builder, builder.fmul(_lanes(builder, args[0]), _lanes(builder, args[1])), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def add_lanes(typingctx, a, b, out):
    """16 floats out = a + b, by address."""

    def codegen(context, builder, signature, args):
        total = builder.fadd(_lanes(builder, args[0]), _lanes(builder, args[1]))
        _store(builder, total, args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def copy_lanes(typingctx, a, out):
    """16 floats from one address to another."""

    def codegen(context, builder, signature, args):
        _store(builder, _lanes(builder, args[0]), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def transpose_lanes(typingctx, a, a_row, out, out_row):
    """16 x 16 numbers of 32 bits from one address to another, rows becoming columns; rows so many bytes apart."""

    def codegen(context, builder, signature, args):
        a, a_row, out, out_row = args
        rows = [_lanes(builder, builder.add(a, builder.mul(a_row, I64(r))), INTEGERS) for r in range(16)]
        for apart in (1, 2, 4, 8):  # rows r and r + apart trade the lanes whose number has that bit and those that have not
            low, high = ([lane & ~apart | (lane & apart and 16) | part for lane in range(16)] for part in (0, apart))
            for r in (r for r in range(16) if not r & apart):
                pair = rows[r], rows[r + apart]
                rows[r], rows[r + apart] = (builder.shuffle_vector(*pair, ir.Constant(INTEGERS, lanes)) for lanes in (low, high))
        for r, row in enumerate(rows):
            _store(builder, row, builder.add(out, builder.mul(out_row, I64(r))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def most_of_columns(typingctx, x, rows, out):
    """The largest of each of 32 columns: x (rows, 32) and out (32,) float32 by address, rows at least 1."""

    def codegen(context, builder, signature, args):
        x, rows, out = args
        largest = [cgutils.alloca_once(builder, LANES) for _ in range(2)]
        for half, place in enumerate(largest):
            builder.store(_lanes(builder, builder.add(x, I64(64 * half))), place)
        with cgutils.for_range(builder, rows, intp=I64) as loop:
            row = builder.add(x, builder.mul(loop.index, I64(128)))
            for half, place in enumerate(largest):
                new, old = _lanes(builder, builder.add(row, I64(64 * half))), builder.load(place)
                builder.store(builder.select(builder.fcmp_ordered("<=", new, old), old, new), place)
        for half, place in enumerate(largest):
            builder.store(builder.load(place), builder.inttoptr(builder.add(out, I64(64 * half)), LANES.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def sum_lanes(squares):
    """An intrinsic: the sum of `count` float32 at an address, or of their squares, as `total` in backends/bitwise.py orders it.

    Zeros must fill the last 64.
    """
    wide = ir.VectorType(F32, 64)

    @intrinsic
    def total(typingctx, x, count):
        def codegen(context, builder, signature, args):
            sums = cgutils.alloca_once_value(builder, ir.Constant(wide, [0.0] * 64))
            steps = builder.sdiv(builder.add(args[1], I64(63)), I64(64))
            with cgutils.for_range(builder, steps, intp=I64) as loop:
                lanes = _lanes(builder, builder.add(args[0], builder.mul(loop.index, I64(256))), wide)
                lanes = builder.fmul(lanes, lanes) if squares else lanes
                builder.store(builder.fadd(builder.load(sums), lanes), sums)
            left, width = builder.load(sums), 32
            while width:
                halves = [ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))) for start in (0, width)]
                left = builder.fadd(*(builder.shuffle_vector(left, left, half) for half in halves))
                width //= 2
            return builder.extract_element(left, I32(0))

        return types.float32(types.int64, types.int64), codegen

    return total


def _widened(builder, address, kind):
    """16 float32 from an address: as they are, or from 16 bf16 or f16."""
    if kind == "float32":
        return _lanes(builder, address)
    bits = _lanes(builder, address, HALVES)
    if kind == "float16":
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), 16)), LANES)
    return builder.bitcast(builder.shl(builder.zext(bits, INTEGERS), ir.Constant(INTEGERS, [16] * 16)), LANES)


def fma_block(rows, vectors, kind="float32", fused=FUSED, fetches=0):
    """An intrinsic: C[r, :] += sum over k of A[r, k] B[k, :], for `rows` rows and 16 `vectors` columns, sums in registers.

    Strides are in floats: C's and B's rows, A's rows and columns; B's numbers may also be bfloat16 or float16, its strides in
    those. A row's bits do not depend on `rows` or `vectors`. fused: a product and its sum are rounded once. With every k so many
    cache lines from `ahead` on are fetched, and `ahead` moves by `pace` bytes.
    """
    size = 4 if kind == "float32" else 2
    name = "llvm.fma.v16f32"

    @intrinsic
    def block(typingctx, c, c_row, a, a_row, a_column, b, b_row, depth, ahead, pace):
        def codegen(context, builder, signature, args):
            c, c_row, a, a_row, a_column, b, b_row, depth, ahead, pace = args
            sums = [[cgutils.alloca_once(builder, LANES) for _ in range(vectors)] for _ in range(rows)]
            zero = ir.Constant(LANES, [0.0] * 16)
            for row in sums:
                for place in row:
                    builder.store(zero, place)

            def at(base, index, stride, size=4):
                return builder.add(base, builder.mul(builder.mul(index, stride), I64(size)))

            with cgutils.for_range(builder, depth, intp=I64) as loop:
                k = loop.index
                right = at(b, k, b_row, size)
                loaded = [_widened(builder, builder.add(right, I64(16 * size * v)), kind) for v in range(vectors)]
                left = at(a, k, a_column)
                for line in range(fetches):
                    _prefetch(builder, builder.add(builder.add(ahead, builder.mul(k, pace)), I64(64 * line)))
                for r in range(rows):
                    pointer = builder.inttoptr(at(left, a_row, I64(r)), F32.as_pointer())
                    spread = _spread(builder, builder.load(pointer, align=4))
                    for v in range(vectors):
                        old = builder.load(sums[r][v])
                        if fused:
                            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(LANES, [LANES] * 3), name)
                            new = builder.call(function, [spread, loaded[v], old])
                        else:
                            new = builder.fadd(builder.fmul(spread, loaded[v]), old)
                        builder.store(new, sums[r][v])
            for r in range(rows):
                for v in range(vectors):
                    address = builder.add(at(c, c_row, I64(r)), I64(64 * v))
                    pointer = builder.inttoptr(address, LANES.as_pointer())
                    total = builder.fadd(builder.load(pointer, align=4), builder.load(sums[r][v]))
                    builder.store(total, pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return block


def dot_block(rows, slices, diagonals, fetches=1):
    """An intrinsic: sums (rows, diagonals, 32) of rows of blocks with a panel (slices.py), by dot products of 4 bytes or 2 bf16.

    Digits' sums are in int32, a slice of bf16's in float32. A row's do not depend on `rows`. The instruction takes bytes of one
    sign and of none, so 128 is added to the weight's digits, by flipping a bit, and 128 times the row's digits taken off first.
    With every 4 bytes of a row so many cache lines from `ahead` on are fetched, and `ahead` moves by `pace` bytes.
    """
    kind, name = (LANES, "avx512bf16.dpbf16ps.512") if slices == 1 else (INTEGERS, "avx512.vpdpbusd.512")
    dot_kind = ir.FunctionType(kind, [kind, INTEGERS, INTEGERS])
    bytes_of_128 = ir.Constant(INTEGERS, [0x80808080 - 2**32] * 16)

    def dot(builder, total, weights, digits):
        return builder.call(
            cgutils.get_or_insert_function(builder.module, dot_kind, f"llvm.x86.{name}"), [total, weights, digits]
        )

    def taken_off(builder, left, steps):  # -128 sum of a row's digits, for each row and slice
        totals = [[cgutils.alloca_once(builder, kind) for _ in range(slices)] for _ in range(rows)]
        places = [(totals[r][i], i * 1024 + r * 64) for r in range(rows) for i in range(slices)]
        for place, _ in places:
            builder.store(ir.Constant(kind, [0] * 16), place)
        with cgutils.for_range(builder, steps, intp=I64) as step:
            start = builder.add(left, builder.mul(step.index, I64(slices * 1024)))
            for place, offset in places:
                digits = _lanes(builder, builder.add(start, I64(offset)), kind)
                builder.store(dot(builder, builder.load(place), bytes_of_128, digits), place)
        add_up = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [kind]), "llvm.vector.reduce.add.v16i32")
        return [[builder.neg(builder.call(add_up, [builder.load(place)])) for place in row] for row in totals]

    @intrinsic
    def block(typingctx, sums, left, right, steps, ahead, pace):
        def codegen(context, builder, signature, args):
            sums, left, right, steps, ahead, pace = args
            places = [[[cgutils.alloca_once(builder, kind) for _ in range(2)] for _ in range(diagonals)] for _ in range(rows)]
            taken = taken_off(builder, left, steps) if slices > 1 else []
            for r, n, half in itertools.product(range(rows), range(diagonals), range(2)):
                start = ir.Constant(kind, [0.0 if slices == 1 else 0] * 16)
                for i in range(max(0, n - slices + 1), min(slices, n + 1)) if taken else ():
                    start = builder.add(start, _spread(builder, taken[r][i], kind))
                builder.store(start, places[r][n][half])
            with cgutils.for_range(builder, steps, intp=I64) as step:
                start = builder.mul(step.index, I64(slices * 1024))
                with cgutils.for_range(builder, I64(16), intp=I64) as quad:
                    fetched = builder.mul(builder.add(builder.mul(step.index, I64(16)), quad.index), pace)
                    for line in range(fetches):
                        _prefetch(builder, builder.add(builder.add(ahead, fetched), I64(64 * line)))
                    a = builder.add(builder.add(left, start), builder.mul(quad.index, I64(4)))
                    b = builder.add(builder.add(right, builder.mul(start, I64(2))), builder.mul(quad.index, I64(64)))
                    for j in range(slices):
                        weights = [_lanes(builder, builder.add(b, I64(j * 2048 + half * 1024)), INTEGERS) for half in range(2)]
                        if slices > 1:
                            weights = [builder.xor(weight, bytes_of_128) for weight in weights]
                        for i, r in itertools.product(range(min(slices, diagonals - j)), range(rows)):
                            pointer = builder.inttoptr(builder.add(a, I64(i * 1024 + r * 64)), I32.as_pointer())
                            digits = _spread(builder, builder.load(pointer, align=4), INTEGERS)
                            for half, weight in enumerate(weights):
                                place = places[r][i + j][half]
                                builder.store(dot(builder, builder.load(place), weight, digits), place)
            for r, n, half in itertools.product(range(rows), range(diagonals), range(2)):
                address = builder.add(sums, I64((r * diagonals + n) * 128 + half * 64))
                builder.store(builder.load(places[r][n][half]), builder.inttoptr(address, kind.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return block

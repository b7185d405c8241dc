"""16 float32 in a register: arithmetic, and loops over memory 16 numbers at a time."""

import numpy as np

from ..compiled import cgutils, intrinsic, ir, types
from ..sizes import SUMS
from .emit import F32, I32, I64, INTEGERS, LANES, load_at, store_at
from .features import FUSED


class Lanes:
    """16 float32 in a register, for a function written for arrays: run on Lanes, each of its operations emits an instruction.

    So a definition in backends/bitwise.py is always compiled alike, for 16 numbers at a time; of a loop over numbers LLVM would
    make 8 at a time, and what it makes depends on the loop. np.where, np.sqrt and `number * lanes` come here by NumPy's own
    protocols, so the definition runs as it stands.
    """

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _emit(self, instruction, *values):
        return Lanes(self.builder, getattr(self.builder, instruction)(*values))

    def _value(self, x):
        """The LLVM value of Lanes; of a number, 16 times that number in this register's type."""
        if isinstance(x, Lanes):
            return x.value
        return ir.Constant(self.value.type, [(float if self.value.type == LANES else int)(x)] * 16)

    def __add__(self, x):
        return self._emit("fadd", self.value, self._value(x))

    def __sub__(self, x):
        return self._emit("fsub" if self.value.type == LANES else "sub", self.value, self._value(x))

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

    def __lshift__(self, x):
        return self._emit("shl", self.value, self._value(x))

    def view(self, dtype):
        """The same bits as 16 int32, or as 16 float32 again."""
        return self._emit("bitcast", self.value, {np.int32: INTEGERS, np.float32: LANES}[dtype])

    def __array_ufunc__(self, ufunc, method, *given):
        """NumPy's protocol for np.sqrt, and for a NumPy number on the left of an operator."""
        if ufunc is np.sqrt and method == "__call__":
            return self.root()
        if ufunc in REFLECTED and method == "__call__" and given[1] is self:
            return REFLECTED[ufunc](self, given[0])
        return NotImplemented

    def __array_function__(self, function, kinds, given, named):
        """NumPy's protocol for np.where; a condition is what a comparison of Lanes gives."""
        if function is not np.where:
            return NotImplemented
        condition, a, b = given
        return self.where(condition, a, b)

    def where(self, condition, a, b):
        """`a` in the lanes where the condition holds, `b` in the others."""
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

    def scaled(self, shifted):
        """self 2^n, n as bitwise.power reads it, by adding n to the exponent; self and the result must be normal numbers."""
        exponent = self.builder.shl(self.builder.bitcast(shifted.value, INTEGERS), ir.Constant(INTEGERS, [23] * 16))
        return self._emit("bitcast", self.builder.add(self.builder.bitcast(self.value, INTEGERS), exponent), LANES)


# What is called for a NumPy number's operator with Lanes on its right.
REFLECTED = {
    np.add: Lanes.__radd__,
    np.subtract: Lanes.__rsub__,
    np.multiply: Lanes.__rmul__,
    np.divide: Lanes.__rtruediv__,
    np.less: Lanes.__gt__,
    np.greater: Lanes.__lt__,
}


def lanes_of(functions):
    """An intrinsic: functions[which](Lanes) of `count` float32 at an address, a multiple of 16, in place."""

    @intrinsic
    def every(typingctx, x, count, which):
        def codegen(context, builder, signature, args):
            x, count, which = args
            done = builder.append_basic_block()
            choice = builder.switch(which, done)
            for number, function in enumerate(functions):
                choice.add_case(I64(number), builder.append_basic_block())
                builder.position_at_end(builder.block.function.blocks[-1])
                with cgutils.for_range(builder, builder.udiv(count, I64(16)), intp=I64) as loop:
                    place = builder.add(x, builder.mul(loop.index, I64(64)))
                    store_at(builder, function(Lanes(builder, load_at(builder, place))).value, place)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return every


def exponentials(exp):
    """An intrinsic: x (rows, 32) -> exp(x - most) in place, added to `sums` (32,); float32, all by address."""

    @intrinsic
    def exponentiate(typingctx, x, rows, most, sums):
        def codegen(context, builder, signature, args):
            x, rows, most, sums = args
            largest = [Lanes(builder, load_at(builder, builder.add(most, I64(64 * half)))) for half in range(2)]
            parts = [cgutils.alloca_once_value(builder, ir.Constant(LANES, [0.0] * 16)) for _ in range(2)]
            with cgutils.for_range(builder, rows, intp=I64) as loop:
                row = builder.add(x, builder.mul(loop.index, I64(SUMS)))
                for half, part in enumerate(parts):
                    place = builder.add(row, I64(64 * half))
                    e = exp(Lanes(builder, load_at(builder, place)) - largest[half])
                    store_at(builder, e.value, place)
                    builder.store((e + Lanes(builder, builder.load(part))).value, part)
            for half, part in enumerate(parts):
                place = builder.add(sums, I64(64 * half))
                store_at(builder, builder.fadd(load_at(builder, place), builder.load(part)), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return exponentiate


@intrinsic
def most_of_columns(typingctx, x, rows, out):
    """The largest of each of 32 columns: x (rows, 32) and out (32,) float32 by address, rows at least 1."""

    def codegen(context, builder, signature, args):
        x, rows, out = args
        largest = [cgutils.alloca_once(builder, LANES) for _ in range(2)]
        for half, place in enumerate(largest):
            builder.store(load_at(builder, builder.add(x, I64(64 * half))), place)
        with cgutils.for_range(builder, rows, intp=I64) as loop:
            row = builder.add(x, builder.mul(loop.index, I64(SUMS)))
            for half, place in enumerate(largest):
                new, old = load_at(builder, builder.add(row, I64(64 * half))), builder.load(place)
                builder.store(builder.select(builder.fcmp_ordered("<=", new, old), old, new), place)
        for half, place in enumerate(largest):
            builder.store(builder.load(place), builder.inttoptr(builder.add(out, I64(64 * half)), LANES.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def sum_lanes(squares):
    """An intrinsic: the sum of `count` float32 at an address, or of their squares, as `total` in backends/bitwise.py orders it.

    Zeros must fill the last 64.
    """

    @intrinsic
    def total(typingctx, x, count):
        def codegen(context, builder, signature, args):
            wide = ir.VectorType(F32, 64)
            sums = cgutils.alloca_once_value(builder, ir.Constant(wide, [0.0] * 64))
            steps = builder.sdiv(builder.add(args[1], I64(63)), I64(64))
            with cgutils.for_range(builder, steps, intp=I64) as loop:
                lanes = load_at(builder, builder.add(args[0], builder.mul(loop.index, I64(256))), wide)
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


@intrinsic
def scale_lanes(typingctx, x, by, out):
    """16 floats out = x by, by address."""

    def codegen(context, builder, signature, args):
        store_at(builder, builder.fmul(load_at(builder, args[0]), load_at(builder, args[1])), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def add_lanes(typingctx, a, b, out):
    """16 floats out = a + b, by address."""

    def codegen(context, builder, signature, args):
        total = builder.fadd(load_at(builder, args[0]), load_at(builder, args[1]))
        store_at(builder, total, args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def copy_lanes(typingctx, a, out):
    """16 floats from one address to another."""

    def codegen(context, builder, signature, args):
        store_at(builder, load_at(builder, args[0]), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def transpose_lanes(typingctx, a, a_row, out, out_row):
    """16 x 16 numbers of 32 bits from one address to another, rows becoming columns; rows so many bytes apart."""

    def codegen(context, builder, signature, args):
        a, a_row, out, out_row = args
        rows = [load_at(builder, builder.add(a, builder.mul(a_row, I64(r))), INTEGERS) for r in range(16)]
        for apart in (1, 2, 4, 8):  # rows r and r + apart trade the lanes whose number has that bit and those that have not
            low, high = ([lane & ~apart | (lane & apart and 16) | part for lane in range(16)] for part in (0, apart))
            for r in (r for r in range(16) if not r & apart):
                pair = rows[r], rows[r + apart]
                rows[r], rows[r + apart] = (builder.shuffle_vector(*pair, ir.Constant(INTEGERS, lanes)) for lanes in (low, high))
        for r, row in enumerate(rows):
            store_at(builder, row, builder.add(out, builder.mul(out_row, I64(r))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen

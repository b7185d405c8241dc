"""LLVM's types, and the few instructions that the other files of this room write in terms of.

`numba.extending.intrinsic` turns a function that emits instructions into one that compiled code calls; these are called by such
functions, with a builder.
"""

from llvmlite import ir

from ..compiled import cgutils

I1, I8, I16, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = ir.VectorType(F32, 16)
INTEGERS = ir.VectorType(I32, 16)
SHORTS = ir.VectorType(I16, 16)


def call_void(builder, name, kinds, args):
    builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name), args)


def prefetch_line(builder, address):
    pointer = builder.inttoptr(address, I8.as_pointer())
    call_void(builder, "llvm.prefetch.p0", [I8.as_pointer(), I32, I32, I32], [pointer, I32(0), I32(2), I32(1)])


def load_at(builder, address, kind=LANES):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def broadcast(builder, x, kind=LANES):
    """16 lanes of one number."""
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, x, I32(0)), nothing, ir.Constant(INTEGERS, [0] * 16))


def store_at(builder, x, address):
    builder.store(x, builder.inttoptr(address, x.type.as_pointer()), align=2)

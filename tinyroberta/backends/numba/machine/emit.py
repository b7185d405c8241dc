"""LLVM's types, and the few instructions that the other files of this room write in terms of.

`numba.extending.intrinsic` turns a function that emits instructions into one that compiled code calls; these are called by such
functions, with a builder.
"""

from ..compiled import cgutils, ir, llvm


def integer(bits):
    return llvm(lambda ir: ir.IntType(bits))


I1, I8, I16, I32, I64 = map(integer, (1, 8, 16, 32, 64))
F32 = llvm(lambda ir: ir.FloatType())
LANES = llvm(lambda ir: ir.VectorType(ir.FloatType(), 16))
INTEGERS = llvm(lambda ir: ir.VectorType(ir.IntType(32), 16))
SHORTS = llvm(lambda ir: ir.VectorType(ir.IntType(16), 16))


def call_void(builder, name, kinds, args):
    builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name), args)


def prefetch_line(builder, address):
    pointer = builder.inttoptr(address, I8.as_pointer())
    call_void(builder, "llvm.prefetch.p0", [I8.as_pointer(), I32, I32, I32], [pointer, I32(0), I32(2), I32(1)])


def load_at(builder, address, kind=None):
    kind = kind or LANES
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def broadcast(builder, x, kind=None):
    """16 lanes of one number."""
    kind = kind or LANES
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, x, I32(0)), nothing, ir.Constant(INTEGERS, [0] * 16))


def store_at(builder, x, address):
    builder.store(x, builder.inttoptr(address, x.type.as_pointer()), align=2)

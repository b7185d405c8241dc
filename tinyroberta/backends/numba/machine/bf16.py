"""bf16 from float32, 16 numbers at a time: rounding, splitting into parts, and laying out pairs for products."""

from ..compiled import cgutils, intrinsic, ir, types
from .emit import I32, INTEGERS, LANES, SHORTS, broadcast, load_at, store_at
from .features import BF16_DOTS


def round_to_bf16(builder, x):
    """16 float32 to bf16, nearest even, as the low halves of 16 integers; one instruction where there is one.

    That instruction, and those that multiply bf16, take numbers below 2^-126 for zeros.
    """
    if BF16_DOTS:
        kind = ir.FunctionType(SHORTS, [LANES])  # LLVM's own from 16 on is of bfloat, but it reads this too
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
        return builder.zext(builder.call(function, [x]), INTEGERS)

    def same(number):
        return ir.Constant(INTEGERS, [number] * 16)

    bits = builder.bitcast(x, INTEGERS)
    high = builder.lshr(bits, same(16))
    up = builder.add(same(0x7FFF), builder.and_(high, same(1)))
    near = builder.lshr(builder.add(bits, up), same(16))
    return builder.select(builder.fcmp_unordered("uno", x, x), builder.or_(high, same(64)), near)


@intrinsic
def round_lanes(typingctx, x, out):
    """16 float32 at an address as 16 bf16 at another."""

    def codegen(context, builder, signature, args):
        store_at(builder, builder.trunc(round_to_bf16(builder, load_at(builder, args[0])), SHORTS), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def parts_of_bf16(builder, x, count):
    """16 float32 as a sum of bf16: each is what those before it leave of the number, rounded; as round_to_bf16 gives them.

    Three hold all 24 bits of a number between 2^-108 and 2^127; of an infinity those after the first are NaN.
    """
    for left in reversed(range(count)):
        part = round_to_bf16(builder, x)
        yield part
        if left:
            x = builder.fsub(x, builder.bitcast(builder.shl(part, ir.Constant(INTEGERS, [16] * 16)), LANES))


def split_lanes(parts):
    """An intrinsic: 16 float32 at an address, times a factor, as parts of 16 bf16, `apart` bytes from one to the next."""

    @intrinsic
    def split(typingctx, x, factor, out, apart):
        def codegen(context, builder, signature, args):
            x, factor, out, apart = args
            scaled = builder.fmul(load_at(builder, x), broadcast(builder, factor))
            for part in parts_of_bf16(builder, scaled, parts):
                store_at(builder, builder.trunc(part, SHORTS), out)
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
            both = (parts_of_bf16(builder, load_at(builder, at), parts) for at in (low, high))
            for first, second in zip(*both, strict=True):
                store_at(builder, builder.or_(first, builder.shl(second, ir.Constant(INTEGERS, [16] * 16))), out)
                out = builder.add(out, apart)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return split


@intrinsic
def copy_shorts(typingctx, x, factor, out, apart):
    """16 numbers of 16 bits from one address to another; as split_lanes is called."""

    def codegen(context, builder, signature, args):
        store_at(builder, load_at(builder, args[0], SHORTS), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), codegen


@intrinsic
def pair_shorts(typingctx, low, high, out, apart):
    """16 pairs of 16 bits, from 16 at one address and 16 at another; as split_pairs is called."""

    def codegen(context, builder, signature, args):
        low, high = (builder.zext(load_at(builder, at, SHORTS), INTEGERS) for at in args[:2])
        store_at(builder, builder.or_(low, builder.shl(high, ir.Constant(INTEGERS, [16] * 16))), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


def widen(builder, address, kind):
    """16 float32 from an address: as they are, or from 16 bf16 or f16."""
    if kind == "float32":
        return load_at(builder, address)
    bits = load_at(builder, address, SHORTS)
    if kind == "float16":
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), 16)), LANES)
    return builder.bitcast(builder.shl(builder.zext(bits, INTEGERS), ir.Constant(INTEGERS, [16] * 16)), LANES)


def scale_32(kind, parts):
    """An intrinsic: twice 16 numbers of a kind, times a factor, as parts of 32 bf16, `apart` bytes from one to the next.

    Each part is written by one store: a load of its 64 bytes soon after would wait for two.
    """

    @intrinsic
    def scale(typingctx, low, high, factor, out, apart):
        def codegen(context, builder, signature, args):
            low, high, factor, out, apart = args
            scaled = (builder.fmul(widen(builder, at, kind), broadcast(builder, factor)) for at in (low, high))
            for pair in zip(*(parts_of_bf16(builder, x, parts) for x in scaled), strict=True):
                halves = (builder.trunc(part, SHORTS) for part in pair)
                joined = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
                store_at(builder, builder.shuffle_vector(*halves, joined), out)
                out = builder.add(out, apart)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), codegen

    return scale

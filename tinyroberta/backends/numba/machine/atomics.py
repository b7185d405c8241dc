"""Words that several threads read and write, each access as a whole, and a pause for the thread that waits for one."""

from ..compiled import intrinsic, types
from .emit import I64, call_void
from .features import X86


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
def pause(typingctx):
    """Tell the core that it spins."""

    def codegen(context, builder, signature, args):
        if X86:
            call_void(builder, "llvm.x86.sse2.pause", [], [])
        return context.get_dummy_value()

    return types.void(), codegen

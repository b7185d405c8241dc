"""Calls: of a kernel by its address, and of the system, to sleep and wake and to say on which CPUs a thread may run."""

import os

from ..compiled import cgutils, intrinsic, ir, types
from .emit import I8, I32, I64


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


read_word, write_word = (_pass_word(f"_{name}" if os.name == "nt" else name) for name in ("read", "write"))


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

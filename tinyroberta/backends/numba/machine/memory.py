"""Memory by its address, which Numba has no name for: pointers, numbers and their bits, allocation, prefetching."""

from ..compiled import cgutils, intrinsic, ir, types
from .emit import F32, I8, I32, I64, call_void, prefetch_line


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
shorts = pointer_to("uint16", "shorts")


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
        call_void(builder, "free", [I8.as_pointer()], [builder.inttoptr(args[0], I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address."""

    def codegen(context, builder, signature, args):
        prefetch_line(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen

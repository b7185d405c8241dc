"""AMX, the CPU's tile unit, from Numba: 8 tiles of 16 rows of 64 bytes, and products of two of them added to a third.

`numba.extending.intrinsic` emits any LLVM instruction, so these have names here. Three things make or break them (Intel's manual,
volume 1, chapter 18): loads are aligned to 64 bytes; Linux gives a process the tiles only after arch_prctl, once, inherited by
the threads it starts; and every thread loads its own configuration.
"""

import ctypes
import platform
import sys
from functools import cache

import numpy as np

from ..buffers import aligned
from ..compiled import cgutils, intrinsic, ir, llvm, types
from .emit import I8, I64
from .features import FEATURES, X86

ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA, SYS_ARCH_PRCTL = 0x1023, 18, 158
POINTER = llvm(lambda ir: ir.IntType(8).as_pointer())

CONFIG = aligned((64,), np.uint8)  # palette 1; eight tiles of 16 rows x 64 bytes
CONFIG[:] = 0
CONFIG[0], CONFIG[16:32:2], CONFIG[48:56] = 1, 64, 16


@cache
def missing() -> str | None:
    """What keeps this process from the tiles, in words; None where nothing does, and then they are switched on."""
    if not (X86 and sys.platform == "linux"):
        return f"tiles need Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if not {"amx-tile", "amx-int8", "amx-bf16"} <= FEATURES:
        return "the CPU has no AMX"
    try:
        refused = ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    except (OSError, AttributeError):
        refused = 1
    return "the kernel refuses AMX to this process (arch_prctl)" if refused else None


def _emit(builder, context, name, kinds, values):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
    builder.call(function, values)
    return context.get_dummy_value()


@intrinsic
def configure(typingctx, address):
    """Load a thread's tile configuration."""

    def codegen(context, builder, signature, args):
        return _emit(builder, context, "llvm.x86.ldtilecfg", [POINTER], [builder.inttoptr(args[0], POINTER)])

    return types.void(types.int64), codegen


@intrinsic
def release(typingctx):
    """Give the tiles back, so that the thread's context is small again."""

    def codegen(context, builder, signature, args):
        return _emit(builder, context, "llvm.x86.tilerelease", [], [])

    return types.void(), codegen


def zero(tile):
    @intrinsic
    def emit(typingctx):
        def codegen(context, builder, signature, args):
            return _emit(builder, context, "llvm.x86.tilezero", [I8], [I8(tile)])

        return types.void(), codegen

    return emit


def _move(name, tile):
    @intrinsic
    def emit(typingctx, address, stride):
        def codegen(context, builder, signature, args):
            return _emit(builder, context, name, [I8, POINTER, I64], [I8(tile), builder.inttoptr(args[0], POINTER), args[1]])

        return types.void(types.int64, types.int64), codegen

    return emit


def load(tile):
    """load(address, stride): rows of 64 bytes, `stride` bytes apart."""
    return _move("llvm.x86.tileloadd64", tile)


def store(tile):
    """store(address, stride)."""
    return _move("llvm.x86.tilestored64", tile)


def _dot(name):
    def of(c, a, b):
        @intrinsic
        def emit(typingctx):
            def codegen(context, builder, signature, args):
                return _emit(builder, context, name, [I8, I8, I8], [I8(c), I8(a), I8(b)])

            return types.void(), codegen

        return emit

    return of


dot_int8 = _dot("llvm.x86.tdpbssd")  # (c, a, b): c (16, 16) int32 += a (16, 64) int8 times b (16, 16, 4) int8
dot_bf16 = _dot("llvm.x86.tdpbf16ps")  # c (16, 16) float32 += a (16, 32) bf16 times b (16, 16, 2) bf16

"""tests/amx_on_cpu: the emulated instructions against NumPy, to the bit, and the numba backend on every path that a CPU can lack.

Where the CPU has AMX, the tests of the instructions run on its own unit.
"""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from amx_on_cpu import emulator

from tinyroberta.backends.numba import amx

TESTS = Path(__file__).parent
reason = emulator.reason_against()
emulated = pytest.mark.skipif(reason is not None, reason=str(reason))
native = amx.missing() is None

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")
PRODUCTS = list(itertools.permutations(range(8), 3))


def routine(name: str, line: str, *registers: str) -> str:
    """A C function of an address and a number, which one instruction reads in these registers."""
    push, pop = ("\n".join(f"{verb} %{register}" for register in order) for verb, order in (("push", KEPT), ("pop", KEPT[::-1])))
    load = "\n".join(f"pop %{register}" for register in registers[::-1])  # the last pushed, the first argument, may be into rsp
    given = "push %rdi\npush %rsi" if len(registers) == 2 else "push %rdi"
    return f"""
.globl {name}
{name}:
{push}
mov %rsp, saved(%rip)
{given}
{load}
{line}
mov saved(%rip), %rsp
{pop}
ret
"""


def moves() -> dict[str, tuple[str, str, int, int, int]]:
    """Loads and stores by name: every base, every index, every scale and displacement; then tile, scale and displacement."""
    random = np.random.default_rng(0)
    found = {}
    indices = [register for register in GENERAL if register != "rsp"]
    pairs = [(base, str(random.choice([i for i in indices if i != base]))) for base in GENERAL]
    pairs += [(str(random.choice([b for b in GENERAL if b != index])), index) for index in indices]
    for n, (base, index) in enumerate(pairs):
        for kind in ("tileloadd", "tileloaddt1", "tilestored"):
            tile, scale, offset = int(random.integers(8)), int(2 ** random.integers(4)), (0, 64, -128, 4096, -1000)[n % 5]
            place, register = f"{offset or ''}(%{base},%{index},{scale})", f"%tmm{tile}"
            line = f"tilestored {register}, {place}" if kind == "tilestored" else f"{kind} {place}, {register}"
            found[f"{kind}_{n}"] = (routine(f"{kind}_{n}", line, base, index), kind, tile, scale, offset)
    return found


@cache
def code() -> Any:
    """Each instruction in a function of its own."""
    text = ".data\nsaved: .quad 0\n.text\n" + "".join(form[0] for form in moves().values())
    text += routine("configure", "ldtilecfg (%r13)", "r13") + routine("configure_far", "ldtilecfg 64(%rax)", "rax")
    text += routine("configure_by_index", "ldtilecfg 64(%rax,%r9,8)", "rax", "r9")
    text += routine("configuration", "sttilecfg (%r12)", "r12") + routine("release", "tilerelease", "rax")
    for t in range(8):
        text += routine(f"zero_{t}", f"tilezero %tmm{t}", "rax")
        text += routine(f"load_{t}", f"tileloadd (%rdi,%rsi), %tmm{t}", "rdi", "rsi")
        text += routine(f"store_{t}", f"tilestored %tmm{t}, (%rdi,%rsi)", "rdi", "rsi")
    text += routine("one_row", "tileloadd (%rdi), %tmm0", "rdi")
    for c, a, b in PRODUCTS:
        text += routine(f"int8_{c}{a}{b}", f"tdpbssd %tmm{b}, %tmm{a}, %tmm{c}", "rax")
        text += routine(f"bf16_{c}{a}{b}", f"tdpbf16ps %tmm{b}, %tmm{a}, %tmm{c}", "rax")
    text += '.section .note.GNU-stack,"",@progbits\n'
    return ctypes.CDLL(str(emulator.compiled(text, "assembler")))


def run(name: str, array: np.ndarray | None = None, number: int = 0, offset: int = 0) -> None:
    """An instruction, on an array's address."""
    address = 0 if array is None else array.ctypes.data + offset
    code()[name](ctypes.c_uint64(address), ctypes.c_uint64(number & (2**64 - 1)))


def configuration(rows: list[int], columns: list[int]) -> np.ndarray:  # eight tiles' rows and bytes a row -> (64,)
    config = np.zeros(64, np.uint8)
    config[0], config[16:32:2], config[48:56] = 1, columns, rows
    return config


def read(tile: int, rows: int, columns: int, dtype: Any = np.uint8) -> np.ndarray:  # -> (rows, columns / size)
    out = np.empty((rows, columns), np.uint8)
    run(f"store_{tile}", out, columns)
    return out.view(dtype)


@pytest.fixture(scope="module")
def unit() -> Iterator[None]:
    """The tiles of this thread: the CPU's, or the emulator's, which a library loaded late gives to this process alone."""
    if native:
        assert amx.missing() is None
    else:
        library = ctypes.CDLL(str(emulator.library()))
        assert library.syscall(amx.SYS_ARCH_PRCTL, amx.ARCH_REQ_XCOMP_PERM, amx.XFEATURE_XTILEDATA) == 0
    yield
    run("release")


@emulated
@pytest.mark.usefixtures("unit")
def test_loads_and_stores_in_every_form_of_address() -> None:
    random = np.random.default_rng()
    for name, (_, kind, tile, scale, offset) in moves().items():
        rows, columns = random.integers(1, 17, 8).tolist(), (4 * random.integers(1, 17, 8)).tolist()
        run("configure", configuration(rows, columns))
        memory = random.integers(0, 256, 1 << 17, np.uint8)  # a stack pointer into it has room for a signal below
        stride = int(random.choice([columns[tile], 200])) if scale < 8 else 64
        here = np.lib.stride_tricks.as_strided(memory[(1 << 16) + offset :], (rows[tile], columns[tile]), (stride * scale, 1))
        if kind == "tilestored":
            inside, before = random.integers(0, 256, (rows[tile], columns[tile]), np.uint8), memory.copy()
            run(f"load_{tile}", inside, columns[tile])
            run(name, memory, stride, 1 << 16)
            np.testing.assert_array_equal(here, inside, name)
            here[:] = 0
            before_here = np.lib.stride_tricks.as_strided(before[(1 << 16) + offset :], here.shape, here.strides)
            before_here[:] = 0
            np.testing.assert_array_equal(memory[1 << 16 :], before[1 << 16 :], name)
        else:
            run(name, memory, stride, 1 << 16)
            np.testing.assert_array_equal(read(tile, rows[tile], columns[tile]), here, name)


@emulated
@pytest.mark.usefixtures("unit")
def test_configurations() -> None:
    random = np.random.default_rng()
    given = configuration(random.integers(1, 17, 8).tolist(), (4 * random.integers(1, 17, 8)).tolist())
    held, ones = np.empty(64, np.uint8), np.full((16, 64), 1, np.uint8)
    for name, array, number in (
        ("configure", given, 0),
        ("configure_far", np.concatenate([given * 0, given]), 0),
        ("configure_by_index", np.concatenate([given * 0, given * 0, given * 0, given]), 16),
    ):
        run("release")
        run("configuration", held)
        assert not held.any()
        run(name, array, number)
        run("configuration", held)
        np.testing.assert_array_equal(held, given)
        for tile in range(8):
            rows, columns = int(given[48 + tile]), int(given[16 + 2 * tile])
            assert not read(tile, rows, columns).any()
            run(f"load_{tile}", ones, 64)
            assert read(tile, rows, columns).all()
            run(f"zero_{tile}")
            assert not read(tile, rows, columns).any()
            run(f"load_{tile}", ones, 64)
    run("configure", given)  # which zeroes what they hold
    assert not any(read(tile, int(given[48 + tile]), int(given[16 + 2 * tile])).any() for tile in range(8))
    run("configure", given * 0)
    run("configuration", held)
    assert not held.any()


@emulated
@pytest.mark.usefixtures("unit")
def test_a_load_without_an_index_reads_one_row_again_and_again() -> None:
    row = np.random.default_rng().integers(0, 256, 64, np.uint8)
    run("configure", configuration([16] * 8, [64] * 8))
    run("one_row", row)
    np.testing.assert_array_equal(read(0, 16, 64), np.tile(row, (16, 1)))


def fit(random: np.random.Generator, tiles: tuple[int, int, int], whole: bool) -> tuple[int, int, int]:
    """Configure three tiles for a product of random shape; rows, depth, columns of 4 bytes."""
    rows, depth, columns = (16, 16, 16) if whole else random.integers(1, 17, 3).tolist()
    shapes = dict(zip(tiles, ((rows, columns), (rows, depth), (depth, columns)), strict=True))
    of = [shapes.get(tile, (0, 0)) for tile in range(8)]
    run("configure", configuration([r for r, _ in of], [4 * c for _, c in of]))
    return rows, depth, columns


def product(kind: str, tiles: tuple[int, int, int], c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c + a b on tiles, each (rows, 4 n bytes)."""
    for tile, x in zip(tiles, (c, a, b), strict=True):
        run(f"load_{tile}", x, x.shape[1] * x.itemsize)
    run(f"{kind}_{''.join(map(str, tiles))}")
    return read(tiles[0], c.shape[0], c.shape[1] * 4, c.dtype)


@emulated
@pytest.mark.usefixtures("unit")
def test_products_of_bytes() -> None:
    random = np.random.default_rng()
    for n, tiles in enumerate(PRODUCTS):
        rows, depth, columns = fit(random, tiles, n % 3 == 0)
        c = random.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)  # some sums pass 2^31
        a, b = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((rows, 4 * depth), (depth, 4 * columns)))
        if n % 5 == 0:
            a[:], b[:] = -128, -128
        exact = a.astype(np.int64) @ b.reshape(depth, columns, 4).transpose(0, 2, 1).reshape(4 * depth, columns).astype(np.int64)
        np.testing.assert_array_equal(product("int8", tiles, c, a, b), (c + exact).astype(np.int32))


def normal(x: np.ndarray) -> np.ndarray:
    """float32 with zeros, of their sign, for subnormal numbers."""
    x = x.astype(np.float32)
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def bf16_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (m, n), (m, 2k), (k, 2n) float32 -> (m, n)
    """Intel's manual: two chains of fused multiply-adds, of even and of odd terms, added; then to c.

    A product of two bf16 has 16 bits, exact in float64; a sum with a float32 is rounded to float64 first, which is to odd here.
    """
    c, a, b = normal(c), normal(a), normal(b)
    chains = np.zeros((2, *c.shape), np.float32)
    for k in range(len(b)):
        for i in range(2):
            term = a[:, 2 * k + i, None].astype(float) * b[k, i::2].astype(float)
            chains[i] = normal(to_odd_sum(term, chains[i].astype(float)).astype(np.float32))
    return normal(c + normal(chains[0] + chains[1]))


def to_odd_sum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y in float64, an inexact sum to the neighbour whose last bit is 1: so that a second rounding is as if the only one."""
    total = x + y
    part = total - x
    rest = (x - (total - part)) + (y - part)
    even = (total.view(np.int64) & 1) == 0
    away = np.where((rest > 0) == (total > 0), 1, -1)
    return np.where((rest != 0) & even & np.isfinite(total), (total.view(np.int64) + away).view(float), total)


@emulated
@pytest.mark.usefixtures("unit")
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_products_of_bf16() -> None:
    random = np.random.default_rng()
    for n, tiles in enumerate(PRODUCTS):
        rows, depth, columns = fit(random, tiles, n % 3 == 0)
        c, a, b = (random.standard_normal(s, dtype=np.float32) for s in ((rows, columns), (rows, 2 * depth), (depth, 2 * columns)))
        spread = (0, 10, 38)[n % 3]  # decimal digits: to the subnormal numbers and beyond the largest
        a, b, c = (x * np.float32(10.0) ** random.uniform(-spread, spread / 2, x.shape).astype(np.float32) for x in (a, b, c))
        if n % 7 == 0:
            a[random.random(a.shape) < 0.1] = random.choice([np.inf, -np.inf, np.nan])
        a, b = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
        y = product("bf16", tiles, c, a, b)
        exact = bf16_product(c, *((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b)))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
        np.testing.assert_array_equal(y[~np.isnan(y)].view(np.uint32), exact[~np.isnan(y)].view(np.uint32))

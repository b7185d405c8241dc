"""tests/amx_on_cpu: the emulated instructions against NumPy, to the bit, and the numba backend on every path that a CPU can lack.

Where the CPU has AMX, the tests of the instructions run on its own unit.
"""

import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from amx_on_cpu import emulator

from tinyroberta.backends.numba import paths
from tinyroberta.backends.numba.machine import amx
from tinyroberta.backends.numba.machine.features import X86

TESTS = Path(__file__).parent
native = amx.missing() is None
uncompiled, unemulated = emulator.reason_against_compiling(), emulator.reason_against()
instructions = pytest.mark.skipif(bool(uncompiled if native else unemulated), reason=f"{uncompiled} {unemulated}")
emulated = pytest.mark.skipif(unemulated is not None, reason=str(unemulated))

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


FAR = 1 << 20


def leas() -> list[tuple[str, str]]:
    """Registers of `lea`, each in both places, but for those that have an encoding of their own as a base."""
    return [(to, base) for to, base in zip(GENERAL, GENERAL[5:] + GENERAL[:5], strict=True) if not {to, base} & {"rsp", "r12"}]


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
    text += routine("illegal", "ud2", "rax")
    for to, base in leas():
        text += routine(f"lea_{to}_{base}", f"tilezero %tmm0\nlea {FAR}(%{base}), %{to}\nlea -8(%{to}), %rax", base)
    text += '.section .note.GNU-stack,"",@progbits\n'
    return ctypes.CDLL(str(emulator.compiled(text, "assembler")))


def run(name: str, array: np.ndarray | None = None, number: int = 0, offset: int = 0) -> int:
    """An instruction, on an array's address; what it leaves in rax."""
    function = code()[name]
    function.argtypes, function.restype = [ctypes.c_uint64] * 2, ctypes.c_uint64
    return int(function(0 if array is None else array.ctypes.data + offset, number))


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


@instructions
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


@instructions
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


@instructions
@pytest.mark.usefixtures("unit")
def test_a_load_without_an_index_reads_one_row_again_and_again() -> None:
    row = np.random.default_rng().integers(0, 256, 64, np.uint8)
    run("configure", configuration([16] * 8, [64] * 8))
    run("one_row", row)
    np.testing.assert_array_equal(read(0, 16, 64), np.tile(row, (16, 1)))


@instructions
@pytest.mark.usefixtures("unit")
def test_additions_that_the_emulator_does_in_passing() -> None:
    run("configure", configuration([16] * 8, [64] * 8))
    array = np.zeros(1)
    for to, base in leas():
        assert run(f"lea_{to}_{base}", array) == array.ctypes.data + FAR - 8


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


@instructions
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


@instructions
@pytest.mark.usefixtures("unit")
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_products_of_bf16() -> None:
    random = np.random.default_rng()
    for n, tiles in enumerate(PRODUCTS):
        rows, depth, columns = fit(random, tiles, n % 3 == 0)
        c, a, b = (
            random.standard_normal(s, dtype=np.float32) for s in ((rows, columns), (rows, 2 * depth), (depth, 2 * columns))
        )
        spread = (0, 10, 38)[n % 3]  # decimal digits: to the subnormal numbers and beyond the largest
        a, b, c = (x * np.float32(10.0) ** random.uniform(-spread, spread / 2, x.shape).astype(np.float32) for x in (a, b, c))
        if n % 7 == 0:
            a[random.random(a.shape) < 0.1] = random.choice([np.inf, -np.inf, np.nan])
        a, b = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
        y = product("bf16", tiles, c, a, b)
        exact = bf16_product(c, *((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b)))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
        np.testing.assert_array_equal(y[~np.isnan(y)].view(np.uint32), exact[~np.isnan(y)].view(np.uint32))


MISTAKES = {
    "nothing permitted": ("configure()", "no permission for the tiles"),
    "nothing configured": ("permit(); run('zero_0')", "no tile configuration in this thread"),
    "another thread": (
        "permit(); configure(); run('zero_0'); t = threading.Thread(target=run, args=['zero_0']); t.start(); t.join()",
        "no tile configuration in this thread",
    ),
    "released": ("permit(); configure(); run('release'); run('store_0', memory, 64)", "no tile configuration in this thread"),
    "a tile with no rows": ("permit(); configure({22: 0, 51: 0}); run('zero_2'); run('zero_3')", "a tile with no rows"),
    "rows and no columns": ("permit(); configure({22: 0})", "rows and no columns"),
    "rows of 62 bytes": ("permit(); configure({22: 62}); run('load_3', memory, 64)", "no multiple of 4 bytes"),
    "17 rows": ("permit(); configure({49: 17})", "more than 16 rows"),
    "an unknown palette": ("permit(); configure({0: 2})", "a palette"),
    "a reserved byte": ("permit(); configure({35: 1})", "a reserved byte"),
    "rows that differ": ("permit(); configure({48: 8}); run('int8_012')", "shapes do not fit"),
    "columns that differ": ("permit(); configure({20: 32}); run('bf16_012')", "shapes do not fit"),
    "a depth that differs": ("permit(); configure({18: 32}); run('bf16_012')", "shapes do not fit"),
    "an instruction that is no one's": ("permit(); run('illegal')", ""),
}
RUN = """
import ctypes, sys, threading
code, memory = ctypes.CDLL(sys.argv[1]), (ctypes.c_uint8 * 4096)()
def permit(): assert ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0
def run(name, array=None, number=0):
    code[name](ctypes.c_uint64(ctypes.addressof(array) if array else 0), ctypes.c_uint64(number))
def configure(changes={}):
    config = (ctypes.c_uint8 * 64)(1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8)
    for place, value in changes.items(): config[place] = value
    run("configure", config)
"""


def python(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """What a Python of its own says, in another environment."""
    clean = {name: value for name, value in os.environ.items() if name not in ("TINYROBERTA_CPU", "PYTEST_ADDOPTS")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=clean | environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)


@emulated
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_hardware_refuses(mistake: str) -> None:
    line, said = MISTAKES[mistake]
    done = python(emulator.environment(), "-X", "faulthandler", "-c", RUN + line, code()._name)
    assert done.returncode == -signal.SIGILL
    lines = re.findall("^amx_on_cpu: .*", done.stderr, re.M)
    assert len(lines) == bool(said)
    assert not said or said in lines[0]
    assert "Fatal Python error: Illegal instruction" in done.stderr  # Python's own handler has its say


def passes(environment: dict[str, str], *arguments: str) -> str:
    """Run tests in another environment; what pytest says."""
    done = python(environment, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BACKEND = [str(TESTS / name) for name in ("test_numba_backend.py", "test_family.py", "test_tap.py")]


@emulated
@pytest.mark.skipif(native, reason="the CPU has AMX: they run on it")
def test_the_numba_backend_on_tiles() -> None:
    said = passes(emulator.environment(), *BACKEND, "-k", "not fma and not blas and not numpy")
    assert "AMX" not in said  # as a reason to skip


@emulated
@pytest.mark.skipif(native, reason="the CPU has AMX: they run on it")
def test_random_models_equal_transformers_on_tiles() -> None:
    pytest.importorskip("transformers")
    passes(emulator.environment(), str(TESTS / "test_live.py"), "-m", "live")


KERNELS = """
import sys
import numpy as np
import tinyroberta
from models_for_tests import new_model
from tinyroberta.backends import PRECISIONS
from tinyroberta.backends.numba import buffers
from tinyroberta.backends.numba.compiled import Kernel
from tinyroberta.backends.numba.machine import amx

config = tinyroberta.RobertaPreLayerNormConfig(
    vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, max_position_embeddings=40
)
ids, run = np.arange(40).reshape(2, 20) + 3, set()
for precision in PRECISIONS:
    model = new_model(tinyroberta.RobertaPreLayerNormModel, config, matmul_precision=precision)
    recording = buffers.Recording()
    with buffers.recorded(recording):
        model(ids, output_hidden_states=True)
    run |= {address for address, *_ in recording.calls}
for module in [module for name, module in sys.modules.items() if name.startswith("tinyroberta.")]:
    for name, kernel in vars(module).items():
        if isinstance(kernel, Kernel) and kernel.missing is amx.missing:
            print(name, kernel.address in run)
"""


@instructions
def test_every_kernel_of_tiles_runs() -> None:
    done = python((({} if native else emulator.environment()) | {"PYTHONPATH": str(TESTS)}), "-c", KERNELS)
    assert done.returncode == 0, done.stderr
    kernels = dict(line.split() for line in done.stdout.splitlines())
    assert len(kernels) == 4
    assert set(kernels.values()) == {"True"}, kernels


PEAKS = """
from benchmarks import ops
found = ops.peaks()
for name in ("tiles, 8-bit", "tiles, bf16"):
    loop, operations = found[name]
    assert loop(3) == 3 and operations > 0
"""


@instructions
def test_the_benchmark_of_ops_runs_its_loop_of_tiles() -> None:
    done = python({} if native else emulator.environment(), "-c", PEAKS)
    assert done.returncode == 0, done.stderr


AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": emulator.flags(
        {name: False for name in emulator.host_features() if re.match("avx512|avx10|amx", name)}
    ),
}
WIDEST = emulator.host_features().get("avx512f", False)
multiplies = pytest.mark.skipif(paths.reason_against("fma") is not None or not X86, reason="no AVX2 with fused multiply-add")


@multiplies
@pytest.mark.skipif(not WIDEST, reason="the CPU has no AVX-512: they run on AVX2 anyway")
def test_the_numba_backend_on_avx2() -> None:
    passes(AVX2, *BACKEND, "-k", "not blas and not numpy")


ASSEMBLY = """
from tinyroberta.backends.numba import compiled
from tinyroberta.backends.numba.products import fma
dispatcher, kinds = compiled.dispatcher_of(fma.fma_products)
print(dispatcher.inspect_asm(kinds))
"""


def loops(assembly: str) -> Iterator[str]:
    """The code of every loop that has none inside."""
    for block in re.split(r"^(?=\.LBB)", assembly, flags=re.M):
        body, jump, _ = block.partition(f"\t{block.split(':')[0]}\n")
        if jump:
            yield body


@multiplies
@pytest.mark.parametrize("environment", [{}, AVX2] if WIDEST else [{}], ids=["widest", "avx2"][: 1 + WIDEST])
def test_the_inner_loops_keep_their_sums_in_registers(environment: dict[str, str]) -> None:
    done = python(environment, "-c", ASSEMBLY)
    assert done.returncode == 0, done.stderr
    inner = [loop for loop in loops(done.stdout) if loop.count("vfmadd") >= 8]
    assert inner
    assert not any("%rsp" in loop for loop in inner)
    assert environment == {} or "zmm" not in done.stdout

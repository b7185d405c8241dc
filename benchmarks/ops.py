"""Each op of the CPU backend alone, beside what the machine can do at most, measured in the same run; answers checked first.

    python -m benchmarks.ops [--ops linear attention ...] [--seconds 0.5] [--threads 2] [--tokens 16 128 512 1024] [--save]

linear is timed on every path that runs here and in every precision, over twelve weights in turn, as a model's layers are, with
what a layer asks of it (bias, GELU, residual). Its floor is the longer of products at the unit's peak and bytes at the memory's
speed; a product by slices is six (highest, eight after GELU) or three of 8-bit integers (four after GELU). Other ops have their
bytes' time as floor, attention its products'. Twelve weights may fit in the last cache: then more than all of the floor is
possible. The error is relative to float64, in the Frobenius norm.
"""

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from tinyroberta.backends import Sequences, Settings, load_backend
from tinyroberta.backends import numpy as definition
from tinyroberta.backends.numba import compiled, paths
from tinyroberta.backends.numba.machine import amx
from tinyroberta.backends.numba.machine.features import FEATURES
from tinyroberta.backends.numba.products import levels
from tinyroberta.backends.records import CALLER, Activated, Dense, Elsewhere

from . import cpu

Array = np.ndarray[Any, np.dtype[Any]]
LAYERS = 12
MOST = {"highest": 1e-6, "high": 2e-4, "medium": 5e-3}  # relative error of one op
SHAPES = {"base": (768, 3072, 12), "large": (1024, 4096, 16)}


# What the machine can do


def peak_loop(instruction: str, register: str) -> Any:
    """An intrinsic, loop(n): n times 12 independent instructions on registers 0 to 11 from 12 and 13, AT&T syntax."""
    clear = [f"vpxor{'d' if register == 'zmm' else ''} %{register}{i}, %{register}{i}, %{register}{i}" for i in range(14)]
    body = [f"{instruction} %{register}12, %{register}13, %{register}{i}" for i in range(12)]
    text = "\n".join([*clear, "1:", *body, "dec $0", "jnz 1b"])
    used = ",".join([f"~{{{register}{i}}}" for i in range(14)])

    @intrinsic
    def loop(typingctx: Any, n: Any) -> Any:  # noqa: ARG001
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)])
            return builder.asm(kind, text, f"=r,0,{used},~{{cc}}", args, True)

        return types.int64(types.int64), codegen

    return loop


def peaks() -> dict[str, tuple[Callable[[int], Any], int]]:
    """The units here: a loop and how many operations, products and sums apart, one turn does."""
    binding.initialize_native_asmparser()  # Numba leaves it out
    found: dict[str, tuple[Callable[[int], Any], int]] = {}
    wide = "avx512f" in FEATURES
    register, bytes_ = ("zmm", 64) if wide else ("ymm", 32)

    def add(name: str, instruction: str, register: str, operations: int) -> None:
        loop = peak_loop(instruction, register)
        found[name] = njit(nogil=True)(lambda n: loop(n)), 12 * operations

    if {"fma", "avx2"} <= FEATURES:
        add("float32 multiply-adds", "vfmadd231ps", register, 2 * bytes_ // 4)
    if "avx512vnni" in FEATURES or "avx512_vnni" in FEATURES:
        add("VNNI, 8-bit", "vpdpbusd", "zmm", 2 * 64)
    if "avx512bf16" in FEATURES or "avx512_bf16" in FEATURES:
        add("bf16 dot products", "vdpbf16ps", "zmm", 2 * 32)
    if amx.missing() is None:
        found |= {"tiles, 8-bit": (tiles(amx.dot_int8), 4 * 2 * 16384), "tiles, bf16": (tiles(amx.dot_bf16), 4 * 2 * 8192)}
    return found


def tiles(dot: Any) -> Callable[[int], Any]:
    """A loop of products into four tiles."""
    compiled.keep_promises()  # amx.py's instructions are Numba's from here on
    configure, release, config = amx.configure, amx.release, amx.CONFIG.ctypes.data
    dot_0, dot_1, dot_2, dot_3 = (dot(t, 6, 7) for t in range(4))
    zero_0, zero_1, zero_2, zero_3, zero_6, zero_7 = (amx.zero(t) for t in (0, 1, 2, 3, 6, 7))

    def loop(n: int) -> int:
        configure(config)
        zero_0(), zero_1(), zero_2(), zero_3(), zero_6(), zero_7()
        for _ in range(n):
            dot_0(), dot_1(), dot_2(), dot_3()
        release()
        return n

    made: Callable[[int], Any] = compiled.njit(loop, nogil=True).made()
    return made


@njit(nogil=True, fastmath=True)
def read(x: Array) -> float:
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return total


def least(call: Callable[[], object], seconds: float) -> float:
    """The least time of a call, after one to warm up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def ceilings(threads: int, seconds: float) -> dict[str, float]:
    """Operations a second of every unit, and bytes a second read from memory, by so many threads."""
    with ThreadPoolExecutor(threads) as pool:

        def together(function: Callable[[Any], Any], arguments: list[Any]) -> float:
            function(arguments[0])
            return least(lambda: list(pool.map(function, arguments)), seconds)

        turns = 1 << 20
        found = {name: threads * turns * each / together(loop, [turns] * threads) for name, (loop, each) in peaks().items()}
        x = np.ones(1 << 27, np.float32)
        found["memory, read"] = x.nbytes / together(read, np.array_split(x, threads))
    a = np.ones((2048, 2048), np.float32)
    with limited(threads):
        found["NumPy's BLAS, float32"] = 2 * 2048**3 / least(lambda: a @ a, seconds)
    return found


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """So many threads for our kernels and for NumPy's BLAS."""
    with load_backend("numba").running(Settings(threads=threads)), definition.running(Settings(threads=threads)):
        yield


def product_peak(path: str, precision: str, after_gelu: bool, limits: dict[str, float]) -> float:  # operations a second
    """At which speed a path could do float32's products."""
    unit, precision = levels.unit_of(path, precision)
    names = {"tiles": ("tiles, 8-bit", "tiles, bf16"), "dots": ("VNNI, 8-bit", "bf16 dot products")}
    if unit in names:
        products = {"highest": 8 if after_gelu else 6, "high": 4 if after_gelu else 3, "medium": 1}[precision]
        return limits[names[unit][precision == "medium"]] / products
    return limits["float32 multiply-adds" if unit == "fma" else "NumPy's BLAS, float32"]


# The ops: each yields its name, a call, what it should give, operations, bytes and how fast the machine could do the operations

Case = tuple[str, Callable[[], Any], Any, float, float, float, float]


@contextmanager
def forced(path: str) -> Iterator[None]:
    """TINYROBERTA_CPU set for a while."""
    before = os.environ.get("TINYROBERTA_CPU")
    os.environ["TINYROBERTA_CPU"] = path
    try:
        yield
    finally:
        del os.environ["TINYROBERTA_CPU"]
        if before is not None:
            os.environ["TINYROBERTA_CPU"] = before


def in_turn(function: Callable[..., Any], weights: list[Any], *rest: Any, **named: Any) -> Callable[[], Any]:
    """A call that takes the next weight each time."""
    turn = iter(range(1 << 62))
    return lambda: function(weights[next(turn) % len(weights)], *rest, **named)


def linear_cases(limits: dict[str, float], tokens: list[int], random: Any, size: str) -> Iterator[Case]:
    ops, (D, F, _) = load_backend("numba"), SHAPES[size]
    kinds = {  # inputs, outputs, activation, residual, whether its rows come out of one
        "query, key, value": (D, 3 * D, None, False, False),
        "attention's output": (D, D, None, True, False),
        "feed-forward, GELU": (D, F, "gelu", False, False),
        "feed-forward's output": (F, D, None, True, True),
    }
    for path in (p for p in paths.PATHS if paths.reason_against(p) is None):
        for precision in MOST:
            if precision != "highest" and levels.unit_of(path, precision)[0] in ("fma", "blas"):
                continue  # the same as highest there
            for kind, (I, O, activation, adds, after_gelu) in kinds.items():
                weight, bias = (random.standard_normal(shape, np.float32) for shape in ((O, I), (O,)))
                weight *= np.float32(0.02)
                layer = Dense((weight,), (bias,), Elsewhere(), CALLER, 0)
                layer = dataclasses.replace(layer, reads=Activated(layer)) if after_gelu else layer
                with forced(path):
                    settings = Settings(matmul_precision=precision)
                    held = [ops.prepare({"layer": layer}, settings)["layer"]["weight"] for _ in range(LAYERS)]
                bytes_ = getattr(held[0], "panels", weight).nbytes
                for T in tokens:
                    x = random.standard_normal((T, I), np.float32)
                    if after_gelu:
                        x = definition.activation(x, "gelu")
                    residual = random.standard_normal((T, O), np.float32) if adds else None
                    exact = definition.linear(x.astype(float), weight.astype(float), bias.astype(float), activation, residual)
                    peak = product_peak(path, precision, after_gelu, limits)
                    moved = bytes_ + 4 * T * (I + O * (2 if adds else 1))

                    def call(
                        weight: Any, x: Any = x, bias: Any = bias, activation: Any = activation, more: Any = residual
                    ) -> Any:
                        return ops.linear(x, weight, bias, activation, more)

                    name = f"{size} {kind}, {T} x {I} -> {O}, {path} {precision}"
                    yield name, in_turn(call, held), exact, 2 * T * I * O, moved, peak, MOST[precision]


def attention_cases(limits: dict[str, float], random: Any, size: str) -> Iterator[Case]:
    ops, (D, _, heads) = load_backend("numba"), SHAPES[size]
    path, kinds = paths.chosen_path(), {"float32": limits.get("float32 multiply-adds", limits["NumPy's BLAS, float32"])}
    if path == "amx":
        kinds = {"float32": limits["tiles, bf16"] / 6, "bfloat16": limits["tiles, bf16"]}
    elif path == "vnni" and paths.BF16_DOTS:
        kinds["bfloat16"] = limits["bf16 dot products"]
    for kind, peak in kinds.items():
        for S in (16, 128, 512, 2048):
            texts = max(1, 512 // S)
            T = texts * S
            q, k, v = (random.standard_normal((T, D), np.float32).astype(kind) for _ in range(3))
            starts = np.arange(0, T + 1, S, dtype=np.int32)
            sequences = Sequences(starts, starts[:-1], np.full(texts, S, np.int32), False)
            exact = definition.attention(*(x.astype(float) for x in (q, k, v)), sequences, heads)[0]
            call = functools.partial(lambda *given: ops.attention(*given)[0], q, k, v, sequences, heads)
            most = MOST["highest" if kind == "float32" else "medium"]
            yield f"{size}, {kind}, {texts} texts of {S}", call, exact, 4 * T * S * D, 4 * T * D * q.itemsize, peak, most


def row_cases(op: str, random: Any, size: str) -> Iterator[Case]:
    ops, (D, F, _) = load_backend("numba"), SHAPES[size]
    for T in (128, 1024, 8192):
        x = random.standard_normal((T, F if op == "gelu" else D), np.float32)
        wide = x.astype(float)
        call: Callable[[], Any]
        moved = 2 * x.nbytes
        if op == "layer_norm":
            gain, shift = random.standard_normal((2, D), np.float32)
            call = functools.partial(ops.layer_norm, x, gain, shift, 1e-12)
            exact = definition.layer_norm(wide, gain.astype(float), shift.astype(float), 1e-12)
        elif op == "gelu":
            call, exact = functools.partial(ops.activation, x, "gelu"), definition.activation(wide, "gelu")
        else:
            tables = [random.standard_normal((n, D), np.float32) for n in (50265, 514, 1)]
            ids = random.integers(0, 50265, T), np.arange(T) % 512 + 2, np.zeros(T, np.int64)
            call = functools.partial(ops.embed, *ids, *tables)
            exact = definition.embed(*ids, *(table.astype(float) for table in tables))
            moved = 3 * x.nbytes
        yield f"{size}, {x.shape[0]} x {x.shape[1]}", call, exact, 0, moved, 1, MOST["highest"]


OPS = ("linear", "attention", "layer_norm", "gelu", "embed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Each op of the CPU backend beside what the machine can do.")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 128, 512, 1024])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    about = cpu.machine()
    threads = chosen.threads or about["cpus"]
    print(f"{about['cpu']}, {threads} threads", *about["path"], sep="\n  ", flush=True)
    limits = ceilings(threads, chosen.seconds)
    for name, speed in limits.items():
        print(f"  {name:24} {speed / 1e9:8.0f} {'GB/s' if name.startswith('memory') else 'G/s'}", flush=True)
    rows = []
    numbers = load_backend("numba").to_numpy
    with limited(threads):
        for op in chosen.ops:
            print(f"{op}: milliseconds, G/s, GB/s, part of the floor's speed, error", flush=True)
            for size in chosen.sizes:
                random = np.random.default_rng(0)
                if op == "linear":
                    cases = linear_cases(limits, chosen.tokens, random, size)
                else:
                    cases = attention_cases(limits, random, size) if op == "attention" else row_cases(op, random, size)
                for name, call, exact, operations, moved, peak, most in cases:
                    off = float(np.linalg.norm(numbers(call()) - exact) / np.linalg.norm(exact))
                    if not off <= most:
                        raise SystemExit(f"{op}, {name}, is off by {off:.1e}, more than {most:.0e}: nothing more was timed")
                    seconds = least(call, chosen.seconds)
                    floor = max(operations / peak, moved / limits["memory, read"])
                    rows.append({"op": op, "case": name, "ms": seconds * 1e3, "operations": operations, "bytes": moved})
                    rows[-1] |= {"part": floor / seconds, "error": off}
                    print(
                        f"  {name:70} {seconds * 1e3:9.3f} {operations / seconds / 1e9:8.0f} {moved / seconds / 1e9:7.1f}"
                        f" {floor / seconds:6.0%}  {off:.1e}",
                        flush=True,
                    )
    if chosen.save:
        cpu.save(about | {"threads": threads, "ceilings": limits, "rows": rows}, "ops")


if __name__ == "__main__":
    main()

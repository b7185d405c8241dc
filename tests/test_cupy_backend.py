"""backends/cupy without a GPU: every kernel in three orders of threads against float64, the whole backend through the stand-in
for CuPy, compilation for real GPUs; and each of these checks on a planted bug that it must see. How: cuda_on_cpu/README.md.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import inspect
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import cublaslt, emulator, nvrtc, stand_in
from models_for_tests import assert_traced, dense, digits, new_model, skip_without, sliced_product
from tasks_for_tests import FOLLOWED, LONG, MASKED, QUESTIONS, TEXTS, assemble, same

import tinyroberta
import tinyroberta.cli
from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.backends import PRECISIONS, Backend, Sequences, Settings, load_backend
from tinyroberta.backends import numpy as definition
from tinyroberta.backends.records import ACTIVATION, PRODUCTS, STREAM, WORDS, Norm, Normed, Table
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.models import CLASSES
from tinyroberta.plan import plan
from tinyroberta.weights.names import nest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")

HERE = Path(__file__).parent
LIBRARIES: dict[int, Any] = {}  # how each backend under test finds cuBLASLt
NVRTC = stand_in.NVRTC()
BF16 = ml_dtypes.bfloat16
UNIT, UNIT_BF16 = 2.0**-24, 2.0**-8
UNITS = {np.dtype(np.float32): UNIT, np.dtype(np.float16): 2.0**-11, np.dtype(BF16): UNIT_BF16}
RESULTS_OF_F16 = (np.dtype(np.float32), np.dtype(np.float16))
LENGTHS = (1, 63, 64, 65, 200)
ROUTES = ("cuBLASLt", "own")
WAYS = [*((p, route) for p in PRECISIONS for route in ROUTES), ("highest", "sliced")]
SEVEN = [name for name in CLASSES if name.startswith("RobertaPreLayerNorm")]


@pytest.fixture(scope="module")
def cupy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ["CUPY_CACHE_DIR"] = str(tmp_path_factory.mktemp("kernels"))
    with stand_in.installed() as module:
        yield module
    for name in ("TINYROBERTA_GPU", "CUPY_CACHE_DIR"):
        os.environ.pop(name, None)


@pytest.fixture
def ops(cupy: Any) -> Any:  # noqa: ARG001
    backend: Any = load_backend("cupy")
    backend.compiler.library = lambda: NVRTC
    use(backend, "own")
    return backend


@pytest.fixture(params=emulator.ORDERS)
def order(request: pytest.FixtureRequest) -> Iterator[str]:
    stand_in.order = request.param
    yield request.param
    stand_in.order = "forward"


@pytest.fixture(params=["Hopper", "Ampere"])
def generation(ops: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With Hopper's matrix instructions, and without."""
    if request.param == "Ampere":
        monkeypatch.setattr(ops.device, "hopper", lambda: False)
    elif not ops.device.hopper():
        pytest.skip("this GPU has no wgmma")
    return str(request.param)


def use(ops: Any, route: str) -> None:
    """Let products take cuBLASLt's place-holder, this package's own kernels, or the sliced ones of those."""
    os.environ["TINYROBERTA_GPU"] = "sliced" if route == "sliced" else "float"
    real = LIBRARIES.setdefault(id(ops), ops.cublaslt.library)
    library = None if route != "cuBLASLt" else cublaslt.Library() if ops.cp.RawModule is stand_in.RawModule else real()
    ops.cublaslt.library = lambda: library


def relative(x: Any, exact: Any) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64) - exact) / np.linalg.norm(exact))


def host(x: Any) -> Any:
    return x.get().astype(np.float64)


# Every op, against the definition in float64.


def test_the_contract_is_kept(ops: Any) -> None:
    for name, declared in vars(Backend).items():
        if inspect.isfunction(declared) and not name.startswith("_"):
            ours = [(p.name, p.default) for p in inspect.signature(getattr(ops, name)).parameters.values()]
            assert ours == [(p.name, p.default) for p in inspect.signature(declared).parameters.values()][1:], name


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 30), (33, 36), (5, 129), (3, 768)])
def test_layer_norm(ops: Any, order: str, rows: int, width: int) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    x = random.standard_normal((rows, width)).astype(np.float32) + 100  # the second pass is what keeps the digits
    weight, bias = random.standard_normal((2, width)).astype(np.float32)
    exact = definition.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), eps=1e-5)
    for dtype, unit in UNITS.items():
        out = ops.layer_norm(ops.asarray(x), ops.weights.Gains(ops.asarray(weight), np.dtype(dtype)), ops.asarray(bias), 1e-5)
        assert out.dtype == dtype
        # the mean of numbers near 100 is rounded once, and its error counts against the row's deviation of 1
        deviation = np.sqrt(x.var(1, dtype=np.float64, keepdims=True) + 1e-5)
        bound = (np.abs(exact) + np.abs(bias)) * 8 * unit + np.abs(weight) * 128 * (2 + math.log2(width)) * UNIT / deviation
        assert (np.abs(host(out) - exact) <= bound).all()


@pytest.mark.parametrize("width", [6, 40])
@pytest.mark.parametrize("kind", ["ids", "vectors", "no positions"])
def test_embed(ops: Any, order: str, width: int, kind: str) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    tables = [random.standard_normal((n, width)).astype(np.float32) for n in (50, 20, 2)]
    ids, positions, types = (random.integers(0, n, 9) for n in (50, 20, 2))
    given = tables[0][ids] if kind == "vectors" else ids
    where = None if kind == "no positions" else positions
    weight, bias = random.standard_normal((2, width)).astype(np.float32)
    summed = definition.embed(given, where, types, *(t.astype(np.float64) for t in tables))
    places = [ops.asarray(given), None if where is None else ops.asarray(where), ops.asarray(types)]
    word, position, segments = map(ops.asarray, tables)
    assert relative(host(ops.embed(*places, word, position, ops.weights.Segments(segments, False))), summed) < 4 * UNIT
    x = ops.embed(*places, word, position, ops.weights.Segments(segments, True))
    assert relative(ops.to_numpy(x), summed) < 4 * UNIT
    out = ops.layer_norm(x, ops.weights.Gains(ops.asarray(weight), np.dtype(np.float32)), ops.asarray(bias), 1e-5)
    assert relative(host(out), definition.layer_norm(summed, weight, bias, 1e-5)) < 64 * UNIT


@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (7, 33, 50), (65, 40, 136), (129, 130, 33)])
@pytest.mark.parametrize(("precision", "route"), WAYS)
def test_linear(ops: Any, order: str, route: str, precision: str, M: int, N: int, K: int) -> None:  # noqa: ARG001
    use(ops, route)
    random = np.random.default_rng()
    x, w, residual = (random.standard_normal(shape).astype(np.float32) for shape in ((M, K), (N, K), (M, N)))
    bias = random.standard_normal(N).astype(np.float32)
    x, w, bias = (
        a.astype(ops.weights.OPERANDS[precision]).astype(np.float32) for a in (x, w, bias)
    )  # exact: of the same operands
    given = {"other": dense(w, bias), "first": dense(w, bias, feeds=ACTIVATION)}
    tree = ops.prepare(given, Settings(matmul_precision=precision))
    layers = [tree["other"], tree["first"]]
    if precision == "high":  # these are TF32's, since nothing bounds their rows; where something does:
        half = ops.cp.asarray(w.astype(np.float16))
        layers += [
            {"weight": ops.weights.Matrix(half, precision, out), "bias": ops.cp.asarray(bias.astype(out))}
            for out in RESULTS_OF_F16
        ]
    exact, size = x.astype(np.float64) @ w.T + bias, np.abs(x).astype(np.float64) @ np.abs(w).T + np.abs(bias)
    # digits are steps of a row's largest number, 2^-23; the products left out are of that size too, and their signs are random
    largest = np.abs(x).max(1, keepdims=True) * np.abs(w).max(1)
    steps = 2.0**-21 * largest * math.sqrt(K) if route == "sliced" else 0.0
    for activation, added in (
        (None, None),
        ("gelu", None),
        ("relu", residual),
        (None, residual),
        ("gelu", residual),
        ("gelu_new", None),
    ):
        wanted = exact if activation is None else definition.activation(exact, activation)
        wanted = wanted if added is None else wanted + added
        gelu = 5e-4 if activation == "gelu" and precision == "medium" and route == "cuBLASLt" else 0.0  # its tanh form
        for weights in layers:
            y = ops.linear(
                ops.asarray(x), **weights, activation=activation, residual=None if added is None else ops.asarray(added)
            )
            assert y.dtype == getattr(weights["weight"], "out", np.float32)
            rounded = UNITS[y.dtype]
            # no activation has a slope above 1.13; results of 16 bits are rounded before an activation and a residual, and after
            bound = 1.2 * (((K + 4) * UNIT + rounded) * size + steps) + gelu + 2 * rounded * (np.abs(wanted) + 1)
            assert (np.abs(host(y) - wanted) <= bound).all(), (activation, y.dtype)


def rows_of_every_size(rows: int, width: int) -> Any:
    """Random rows from 1e-38 to 1e38, one of zeros."""
    random = np.random.default_rng()
    x = random.standard_normal((rows, width)) * 10.0 ** random.integers(-37, 37, (rows, 1))
    x[rows // 2] = 0
    x[rows // 3] = 1e-38 * random.random(width)  # so small that its digits are cut off
    return x.astype(np.float32)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 30), (9, 64), (5, 129), (6, 132), (3, 768)])
def test_cut(ops: Any, order: str, rows: int, width: int) -> None:  # noqa: ARG001
    assert cut_misses(ops, rows, width) == 0


def cut_misses(ops: Any, rows: int, width: int) -> int:
    """How many digits and scales are not the definition's; past a row's end there are zeros."""
    x = rows_of_every_size(rows, width)
    (ours,) = ops.digits.cut(ops.asarray(x))
    expected, scales = digits(x, 3)
    found = ours.digits.get().transpose(2, 0, 1, 3).reshape(3, rows, -1)
    padded = np.pad(expected, ((0, 0), (0, 0), (0, -width % 64)))
    return int((found != padded).sum() + (ours.scales.get() != scales).sum())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator flushes subnormal numbers on x86-64 alone")
def test_planted_the_flag_that_cupy_adds(ops: Any, monkeypatch: pytest.MonkeyPatch, unplanted: None) -> None:  # noqa: ARG001
    assert cut_misses(ops, 9, 64) == 0
    monkeypatch.setattr(ops.compiler, "FLAGS", (*ops.compiler.FLAGS, "-ftz=true"))
    ops.launch._module.cache_clear()
    ops.launch._kernel.cache_clear()
    assert cut_misses(ops, 9, 64) > 0


def test_digits_and_scales_are_the_cpu_backends(ops: Any) -> None:
    skip_without("cpu")
    from tinyroberta.backends.numba import norm, operands

    x = rows_of_every_size(37, 70)
    (ours,), theirs = ops.digits.cut(ops.asarray(x)), norm.cut(x, operands.THREE_DIGITS)
    np.testing.assert_array_equal(ours.digits.get(), theirs.blocks.transpose(0, 3, 1, 2, 4).reshape(-1, 2, 3, 64)[:37])
    np.testing.assert_array_equal(ours.scales.get(), theirs.scales[:37])


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 30), (33, 36), (3, 768)])
def test_a_norm_that_cuts_is_a_norm_and_a_cut(ops: Any, order: str, rows: int, width: int) -> None:  # noqa: ARG001
    assert norm_cut_misses(ops, rows, width) == 0


def norm_cut_misses(ops: Any, rows: int, width: int) -> int:
    """How many digits and scales of a norm are not those of its float32 result."""
    random = np.random.default_rng()
    x, weight, bias = (ops.asarray(random.standard_normal(shape)) for shape in ((rows, width), width, width))
    fused = ops.layer_norm(x, ops.weights.Gains(weight, ops.launch.DIGITS), bias, 1e-5)
    (apart,) = ops.digits.cut(ops.layer_norm(x, ops.weights.Gains(weight, ops.launch.FLOAT), bias, 1e-5))
    return sum(int((getattr(fused, name).get() != getattr(apart, name).get()).sum()) for name in ("digits", "scales"))


def sliced_layer(ops: Any, weight: Any, bias: Any, second: bool) -> Any:
    """A dense layer's prepared weight and bias; a feed-forward's second keeps eight products."""
    use(ops, "sliced")
    layer = ops.prepare({"layer": dense(weight, bias, after_activation=second)}, Settings())["layer"]
    assert layer["weight"].diagonals == 3 + second
    return layer


def sliced_misses(ops: Any, shape: tuple[int, int, int], second: bool) -> int:
    """How many numbers of a product are not the definition's, to the bit."""
    random = np.random.default_rng()
    M, N, K = shape
    x, weight = rows_of_every_size(M, K), random.standard_normal((N, K)).astype(np.float32)
    weight *= np.float32(10) ** random.integers(-1, 1, (N, 1)).astype(np.float32)
    bias, residual = (random.standard_normal(s).astype(np.float32) for s in (N, (M, N)))
    x[-1] /= np.abs(x[-1]).max()  # a row of the bias's size, where a sum rounded once would show
    layer = sliced_layer(ops, weight, bias, second)
    with np.errstate(all="ignore"):
        exact = sliced_product(x, weight, 3, 3 + second, coarse=False) + bias
        whole = exact + residual
    plain = ops.linear(ops.asarray(x), **layer).get()
    added = ops.linear(ops.asarray(x), **layer, residual=ops.asarray(residual)).get()
    return int((plain.view(np.int32) != exact.view(np.int32)).sum() + (added.view(np.int32) != whole.view(np.int32)).sum())


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 50), (129, 65, 136), (64, 130, 64), (33, 20, 257)])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.usefixtures("order", "generation")
def test_sliced_products_equal_their_definition(ops: Any, shape: tuple[int, int, int], second: bool) -> None:
    assert sliced_misses(ops, shape, second) == 0


@pytest.mark.parametrize(("second", "columns"), [(False, 128), (False, 96), (True, 96)])
@pytest.mark.usefixtures("order")
def test_sliced_products_in_large_blocks_equal_their_definition(
    ops: Any, monkeypatch: pytest.MonkeyPatch, second: bool, columns: int
) -> None:
    monkeypatch.setattr(ops.digits, "_block", lambda *_: (2, columns, 4))
    assert sliced_misses(ops, (131, 130, 330), second) == 0


def test_blocks_of_sliced_products_leave_few_multiprocessors_idle(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.device, "multiprocessors", lambda: 132)
    assert ops.digits._block(128, 768, 3) == (1, 32, 6)
    assert ops.digits._block(4096, 768, 3) == (2, 96, 4)  # 256 tiles are two rounds, as the 192 larger ones would be
    assert ops.digits._block(4096, 3072, 3) == (2, 128, 4)
    assert ops.digits._block(4096, 768, 4) == (2, 96, 4)


def test_sliced_rows_that_are_not_finite_are_theirs_alone(ops: Any, order: str) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    x, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((20, 70), (40, 70)))
    layer = sliced_layer(ops, weight, np.zeros(40, np.float32), False)
    clean = ops.linear(ops.asarray(x), **layer).get()
    x[3, 5], x[17, 0] = np.nan, -np.inf
    y = ops.linear(ops.asarray(x), **layer).get()
    assert np.isnan(y[[3, 17]]).all()
    np.testing.assert_array_equal(np.delete(y, [3, 17], 0), np.delete(clean, [3, 17], 0))
    assert ops.linear(ops.asarray(x[:0]), **layer, activation="relu").shape == (0, 40)


def test_a_sliced_row_has_the_same_bits_in_any_batch(ops: Any) -> None:
    random = np.random.default_rng()
    x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((150, 70), (40, 70), 40))
    layer = sliced_layer(ops, weight, bias, False)
    whole = ops.linear(ops.asarray(x), **layer, activation="gelu").get()
    some = [7, 149, 64, 3]
    np.testing.assert_array_equal(ops.linear(ops.asarray(x[some]), **layer, activation="gelu").get(), whole[some])


def deepest(ops: Any, monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Let a row be cut into pieces of so many numbers."""
    for room in (ops.digits, ops.weights):
        monkeypatch.setattr(room, "DEEPEST", numbers)


@pytest.mark.parametrize("K", [300, 301])
def test_a_sliced_row_too_wide_for_int32_is_summed_in_pieces(ops: Any, monkeypatch: pytest.MonkeyPatch, K: int) -> None:
    deepest(ops, monkeypatch, 128)
    random = np.random.default_rng()
    x, weight, bias, residual = (random.standard_normal(s).astype(np.float32) for s in ((7, K), (33, K), 33, (7, 33)))
    pieces = [sliced_product(x[:, k : k + 128], weight[:, k : k + 128], 3, 3, coarse=False) for k in range(0, K, 128)]
    summed = (pieces[0] + bias) + pieces[1] + pieces[2]
    layer = sliced_layer(ops, weight, bias, False)
    y = ops.linear(ops.asarray(x), **layer, activation="relu", residual=ops.asarray(residual)).get()
    np.testing.assert_array_equal(y, np.maximum(summed, 0) + residual)


def test_the_deepest_sum_of_digit_products_fits_in_int32(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 128 * 128 * 3 * ops.digits.DEEPEST < 2**31  # three products of two digits of at most 128, for every number of a row

    def right() -> bool:
        row = np.full((1, ops.digits.DEEPEST), 127 * 65793 - 1, np.float32)  # digits of 127
        layer = sliced_layer(ops, row, np.zeros(1, np.float32), False)
        return bool(ops.linear(ops.asarray(row), **layer).get() == sliced_product(row, row, 3, 3, coarse=False))

    assert right()
    deepest(ops, monkeypatch, 2 * ops.digits.DEEPEST)  # planted
    assert not right()


def spread(queries: tuple[int, ...], keys: tuple[int, ...], causal: bool) -> Sequences:
    starts = [np.concatenate([[0], np.cumsum(n)]).astype(np.int32) for n in (queries, keys)]
    return Sequences(starts[0], starts[1][:-1], np.array(keys, np.int32), causal)


def attended(ops: Any, arrays: Any, sequences: Sequences, heads: int, dtype: Any, **given: Any) -> tuple[Any, Any, Any]:
    """An attention's output and its probabilities, and the definition's answer for the same operands in float64."""
    arrays = [a.astype(dtype).astype(np.float64) for a in arrays]
    exact, probabilities = definition.attention(*arrays, sequences, heads, probs=True, **given)
    moved = [ops.cp.asarray(a.astype(dtype)) for a in arrays]
    if arrays[0].shape == arrays[1].shape:  # as the model has them: thirds of one array
        joined, width = ops.cp.asarray(np.concatenate(arrays, 1).astype(dtype)), arrays[0].shape[1]
        moved = [joined[:, i * width : (i + 1) * width] for i in range(3)]
    given = {name: ops.asarray(value) for name, value in given.items()}
    out, _ = ops.attention(*moved, sequences, heads, **given)
    whole, ours = ops.attention(*moved, sequences, heads, probs=True, **given)
    assert relative(host(whole), exact) < (2e-6 if dtype == np.float32 else UNITS[np.dtype(dtype)])
    return host(out), exact, max(relative(host(a), b) for a, b in zip(ours, probabilities, strict=True))


@pytest.mark.parametrize("width", [1, 30, 129, 768])
def test_sums(ops: Any, order: str, width: int) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    ends = np.cumsum([1, 7, 64, 3, 512])
    starts = ends - [1, 7, 60, 3, 500]  # some parts leave out their first rows
    x = (random.standard_normal((ends[-1], width)) * np.exp(2 * random.standard_normal((ends[-1], width)))).astype(np.float32)
    for given in (x, x.astype(np.float16)):
        found = ops.to_numpy(ops.sums(ops.cp.asarray(given), starts, ends))
        assert found.dtype == np.float64
        wanted = definition.sums(given.astype(np.float32), starts, ends) if width > 1 else [
            [np.cumsum(given.astype(np.float64)[start:end])[-1]] for start, end in zip(starts, ends, strict=True)
        ]  # fmt: skip
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize(("d", "queries", "keys"), [(12, (1, 63, 65), (1, 63, 65)), (64, (64,), (130,)), (5, (3, 70), (3, 69)),
                                                    (100, (7,), (33,)), (130, (3, 2), (3, 2))])  # fmt: skip
@pytest.mark.parametrize("causal", [False, True])
def test_attention(ops: Any, order: str, dtype: Any, d: int, queries: Any, keys: Any, causal: bool) -> None:  # noqa: ARG001
    if causal and any(q > k for q, k in zip(queries, keys, strict=True)):
        return
    attention_is_near(ops, dtype, d, queries, keys, causal)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize(("queries", "keys"), [((1, 63, 129), (1, 63, 129)), ((64, 3), (64, 130)), ((200,), (320,))])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("order", "generation")
def test_attention_of_64_numbers_a_head(ops: Any, dtype: Any, queries: Any, keys: Any, causal: bool) -> None:
    attention_is_near(ops, dtype, 64, queries, keys, causal)


def attention_is_near(ops: Any, dtype: Any, d: int, queries: Any, keys: Any, causal: bool) -> None:
    random = np.random.default_rng()
    q, k, v = (random.standard_normal((sum(n), 2 * d)) for n in (queries, keys, keys))
    out, exact, probabilities = attended(ops, (q, k, v), spread(queries, keys, causal), 2, dtype)
    # float32: scores err by some d units of their size, about sqrt(d); else weights and results are rounded, half a unit rms
    assert relative(out, exact) < (4e-6 if dtype == np.float32 else UNITS[np.dtype(dtype)])
    assert probabilities < 4e-6


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize(
    "shapes", [((2, 1, 1, 33), (1, 3, 1, 1)), ((2, 3, 33, 33), (2, 3, 33, 33)), ((1, 1, 33, 33), (1, 1, 1, 33))]
)
def test_attention_with_a_bias_and_a_head_mask(ops: Any, order: str, dtype: Any, shapes: Any) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    q, k, v = random.standard_normal((3, 66, 3 * 8))
    bias = random.standard_normal(shapes[0])
    bias[..., :4] = np.finfo(np.float32).min
    given = {"bias": bias.astype(np.float32), "head_mask": random.random(shapes[1]).astype(np.float32)}
    out, exact, probabilities = attended(ops, (q, k, v), spread((33, 33), (33, 33), False), 3, dtype, **given)
    assert relative(out, exact) < (4e-6 if dtype == np.float32 else UNITS[np.dtype(dtype)])
    assert probabilities < 4e-6


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_a_row_that_may_read_nothing_reads_everything_alike(ops: Any, dtype: Any) -> None:
    random = np.random.default_rng()
    q, k, v = random.standard_normal((3, 40, 16))
    bias = np.full((1, 1, 1, 40), np.finfo(np.float32).min)
    out, *_ = attended(ops, (q, k, v), spread((40,), (40,), False), 2, dtype, bias=bias)
    assert relative(out, np.broadcast_to(v.mean(0), out.shape)) < 4 * UNIT_BF16


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_attention_reads_a_cache(ops: Any, order: str, dtype: Any) -> None:  # noqa: ARG001
    random = np.random.default_rng()
    B, S, past, heads, d = 2, 3, 66, 2, 8
    keys, values = random.standard_normal((2, B, heads, past + S + 9, d))
    starts = np.arange(B + 1, dtype=np.int32)
    sequences = Sequences(starts * S, starts[:-1] * 0, np.full(B, past + S, np.int32), True)
    out, exact, _ = attended(ops, (random.standard_normal((B * S, heads * d)), keys, values), sequences, heads, dtype)
    assert relative(out, exact) < (4e-6 if dtype == np.float32 else UNITS[np.dtype(dtype)])
    q, whole = (ops.cp.asarray(random.standard_normal(shape).astype(dtype)) for shape in ((B * S, heads * d), (B, heads, 90, d)))
    view = whole[:, :, : past + S]
    part, _ = ops.attention(q, view, view, sequences, heads)
    packed = ops.cp.asarray(view.get().transpose(0, 2, 1, 3).reshape(-1, heads * d))
    dense, _ = ops.attention(q, packed, packed, sequences._replace(key_start=starts[:-1] * (past + S)), heads)
    np.testing.assert_array_equal(part.get(), dense.get())


@pytest.mark.parametrize("name", definition.ACTIVATIONS)
def test_activation(ops: Any, name: str) -> None:
    x = np.concatenate([np.random.default_rng().standard_normal(300) * 4, [0.0, -0.0, 30, -30, 1e-3, -1e-3]]).astype(np.float32)
    exact = definition.activation(x.astype(np.float64), name)
    out = host(ops.activation(ops.asarray(x), name))
    assert (np.abs(out - exact) <= 40 * UNIT * np.maximum(np.abs(exact), 0.05) + 8 * UNIT).all()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_real_cupy_has_every_name_that_is_borrowed() -> None:
    package = Path(tinyroberta.__file__).parent / "backends" / "cupy"
    ours = "".join(path.read_text() for path in package.glob("*.py"))
    used = set(re.findall(r"\bcp\.([\w.]+)", ours))
    methods = (
        "cuda.Stream.begin_capture", "cuda.Stream.end_capture", "cuda.Stream.record", "cuda.Stream.wait_event",
        "cuda.Stream.null.ptr", "cuda.Graph.launch", "cuda.MemoryPool.malloc", "cuda.MemoryPool.total_bytes", "cuda.Event.record",
        "cuda.Event.synchronize", "RawModule.get_function",
        "ndarray.set", "ndarray.get", "ndarray.__array_function__", "ndarray.__cuda_array_interface__",
    )  # fmt: skip
    code = f"import cupy, operator\nfor name in {sorted(used.union(methods))}: operator.attrgetter(name)(cupy)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_activation_has_its_number(ops: Any) -> None:
    assert set(ops.ops.ACTIVATIONS) == set(definition.ACTIVATIONS)


# The whole backend.

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=60,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=204,
    type_vocab_size=2,
    num_labels=2,
    initializer_range=0.1,
)


def fields_of(config: RobertaPreLayerNormConfig) -> dict[str, Any]:
    """What another family's configuration of the same sizes is made of."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init and f.name != "model_type"}


def ragged(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    random = np.random.default_rng()
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(int)
    ids = np.where(mask == 1, random.integers(3, 60, mask.shape), CONFIG.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, mask.shape) * mask}


def pair(name: str, config: RobertaPreLayerNormConfig = CONFIG, **running: Any) -> tuple[Any, Any]:
    kind = getattr(tinyroberta, name)
    model = kind(config, seed=int(np.random.default_rng().integers(1 << 30)), backend="cupy", **running)
    return model, kind(config, model.tensors, backend="numpy", dtype="float64")


def alike(ours: Any, exact: Any, tolerance: float) -> None:
    """Every array of an output, on the device and near the definition's."""
    assert ours.keys() == exact.keys()
    for name, value in ours.items():
        parts = zip(value, exact[name], strict=True) if isinstance(value, tuple) else [(value, exact[name])]
        for x, y in parts:
            if name not in ("loss", "past_key_values"):
                assert hasattr(x, "__cuda_array_interface__")
                assert relative(host(x), y) < tolerance, name
            elif name == "loss":
                assert abs(x - y) < tolerance * abs(y)


def cancelled(exact: Any, inputs: dict[str, Any]) -> float:
    """How many times longer the terms of multiple choice's logits, one dot product each, are than what they add up to.

    The error of a dot product is beside the lengths of its two vectors, however much of it cancels.
    """
    with tinyroberta.trace(exact, "pooler") as trace:
        logits = exact(**inputs).logits
    weight = exact.tensors["classifier.weight"]
    return float(np.linalg.norm(trace["pooler"]) * np.linalg.norm(weight) / np.linalg.norm(logits))


BUDGETS = {
    "highest": 2e-6,
    "high": 2e-3,
    "medium": 5e-2,
}  # over all layers, weights of deviation 0.1


@pytest.mark.parametrize(("precision", "route"), WAYS)
@pytest.mark.parametrize("name", SEVEN)
def test_every_class_eager_recorded_and_replayed(ops: Any, name: str, precision: str, route: str) -> None:
    use(ops, route)
    model, exact = pair(name, matmul_precision=precision)
    for _ in range(3):  # the second time is recorded, the third replays that on other data
        inputs = ragged()
        if name.endswith("MultipleChoice"):
            inputs = {key: np.stack([value, np.roll(value, 1, 0)], 1) for key, value in inputs.items()}
        tolerance = BUDGETS[precision]
        if name.endswith("MultipleChoice"):
            tolerance *= cancelled(exact, inputs)
        alike(model(**inputs), exact(**inputs), tolerance)
    recordings = [recording for recording in model.weights.recordings.values() if recording]
    assert len(recordings) == (0 if name.endswith("CausalLM") and model.config.is_decoder else 1)


@pytest.mark.parametrize(("precision", "route"), WAYS)
@pytest.mark.parametrize("name", SEVEN)
def test_texts_without_padding_through_every_head(ops: Any, name: str, precision: str, route: str) -> None:
    use(ops, route)
    model, exact = pair(name, matmul_precision=precision)
    inputs = ragged()
    texts, types = ([row[mask == 1].tolist() for row, mask in zip(inputs[key], inputs["attention_mask"], strict=True)]
                    for key in ("input_ids", "token_type_ids"))  # fmt: skip
    tolerance = BUDGETS[precision]
    if name.endswith("MultipleChoice"):
        tolerance *= cancelled(exact, {key: value[:, None] for key, value in inputs.items()})
    alike(model.packed(texts, types), exact.packed(texts, types), tolerance)


TASKS = {
    "text-classification": ("labels", TEXTS),
    "token-classification": ("entities", TEXTS),
    "question-answering": ("answers", [(asked["question"], asked["context"]) for asked in QUESTIONS]),
    "multiple-choice": ("choices", FOLLOWED),
    "fill-mask": ("words", MASKED),
    "feature-extraction": ("bare", TEXTS),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_answer_as_the_definition(ops: Any, name: str, tmp_path: Path) -> None:  # noqa: ARG001
    pytest.importorskip("tokenizers")
    model, given = TASKS[name]
    folder = assemble(model, tmp_path / "model")
    found, expected = (list(tinyroberta.task(name, folder, backend=backend)(given)) for backend in ("cupy", "numpy"))
    as_lists = [[x.tolist() if isinstance(x, np.ndarray) else x for x in answers] for answers in (found, expected)]
    assert same(*as_lists)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_has_the_same_bits_in_any_company(ops: Any, precision: str) -> None:
    use(ops, "own")
    pytest.importorskip("tokenizers")
    embedder = tinyroberta.Embedder.from_pretrained(backend="cupy", matmul_precision=precision)
    exact = tinyroberta.Embedder.from_pretrained(backend="numpy", dtype="float64")
    texts = [*TEXTS, LONG]
    together = embedder.encode(texts)
    assert relative(together, exact.encode(texts)) < BUDGETS[precision]
    for budget in (1, 40):
        assert np.array_equal(embedder.encode(texts[::-1], batch_tokens=budget)[::-1], together)


def test_a_replay_is_equal_to_the_eager_run(ops: Any) -> None:
    model, _ = pair("RobertaPreLayerNormModel", matmul_precision="medium")
    inputs = [ragged(), ragged((200, 65, 64, 63, 1)), ragged((3, 200, 61, 60, 70))]
    played = [model(**given).last_hidden_state.get() for given in (inputs[0], *inputs)][1:]
    (recording,) = model.weights.recordings.values()
    assert recording is not None
    ops_recorded, ops.recorded = ops.recorded, lambda compute, *_: compute
    try:
        for given, last in zip(inputs, played, strict=True):
            np.testing.assert_array_equal(model(**given).last_hidden_state.get(), last)
    finally:
        ops.recorded = ops_recorded


def test_a_layer_is_seven_launches(ops: Any) -> None:
    use(ops, "cuBLASLt")
    model, _ = pair("RobertaPreLayerNormModel", matmul_precision="medium")
    stand_in.launched.clear()
    model(**ragged())
    layer = ["layer_norm", "cublasLtMatmul", "attention_mma", "cublasLtMatmul", "layer_norm", "cublasLtMatmul", "cublasLtMatmul"]
    names = [name.split("<")[0] for name in stand_in.launched]
    # then the last norm, and the pooler: its operand cut to bf16, a product, a tanh
    assert names == ["embed_layer_norm", *layer, *layer, "layer_norm", "activation", "cublasLtMatmul", "activation"]


def test_a_layer_is_nine_launches_on_the_sliced_route(ops: Any) -> None:
    use(ops, "sliced")
    model, _ = pair("RobertaPreLayerNormModel")
    stand_in.launched.clear()
    model(**ragged())
    layer = ["layer_norm_cut", "linear_sliced_wgmma", "attention", "cut_rows", "linear_sliced_wgmma",
             "layer_norm_cut", "linear_sliced_wgmma", "cut_rows", "linear_sliced_wgmma"]  # fmt: skip
    names = [name.split("<")[0] for name in stand_in.launched]
    assert names == ["embed_layer_norm", *layer, *layer, "layer_norm", "cut_rows", "linear_sliced_wgmma", "activation"]


def test_outlying_norm_gains_cost_no_accuracy(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ops, "sliced")
    random = np.random.default_rng()
    x, gain, shift, weight, bias = (random.standard_normal(s) for s in ((50, 192), 192, 192, (100, 192), 100))
    gain[[5, 101]] *= 100 / np.abs(gain[[5, 101]])
    weight[:, [5, 101]] /= 100  # as trained models have it: what is large is read in small measure
    x, gain, shift, weight, bias = (a.astype(np.float32) for a in (x, gain, shift, weight, bias))
    normed = definition.layer_norm(*(a.astype(np.float64) for a in (x, gain, shift)), eps=1e-5)
    exact = normed @ weight.T.astype(np.float64) + bias

    def error() -> float:
        norm = Norm(gain, shift, PRODUCTS, 0)
        layer = ops.prepare({"norm": norm, "dense": dense(weight, bias, reads=Normed((norm,)))}, Settings())
        return relative(host(ops.linear(ops.layer_norm(ops.asarray(x), **layer["norm"], eps=1e-5), **layer["dense"])), exact)

    assert error() < 4e-7
    monkeypatch.setattr(ops.weights, "shares_of", lambda _: {})  # planted
    assert error() > 1e-6


def sizes_recorded(model: Any) -> list[int]:
    """The tokens of the recordings that there are, the least recently used first."""
    return [size.tokens for size, recording in model.weights.recordings.items() if recording]


def test_recordings_are_bounded(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = pair("RobertaPreLayerNormModel")
    monkeypatch.setattr(ops.recording, "RECORDINGS", 3)

    def twice(*batches: int) -> None:
        for batch in (*batches, *batches):
            model(np.full((batch, 64), 7))

    twice(1, 2, 3)
    assert sizes_recorded(model) == [64, 128, 192]
    model(np.full((1, 64), 7))
    twice(4)
    assert sizes_recorded(model) == [192, 64, 256]  # 128 was used least recently
    for tokens in range(1, 2000, 64):  # sizes that come once are not kept for ever either
        model.weights.seen(ops.recording.Size(tokens, 1, False, True, ()))
    assert len(model.weights.recordings) == 3
    assert relative(host(model(np.full((2, 64), 7)).last_hidden_state), exact(np.full((2, 64), 7)).last_hidden_state) < 2e-6


def test_recordings_take_turns_at_one_memory(ops: Any) -> None:
    model, _ = pair("RobertaPreLayerNormModel")
    taken = []
    for batch in (5, 4, 3):
        for _ in range(2):
            model(np.full((batch, 64), 7))
        taken.append(model.weights.pool.total_bytes())
    assert len(sizes_recorded(model)) == 3
    assert taken[2] - taken[0] < taken[0] / 5  # their inputs and results; what lies between launches is there already
    del ops


def test_recordings_memory_is_bounded(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = pair("RobertaPreLayerNormModel")
    inputs = [np.full((batch, 64), 7) for batch in (1, 2, 3)]
    for x in (*inputs, *inputs[:2]):
        model(x)
    taken = model.weights.pool.total_bytes()
    monkeypatch.setattr(ops.recording, "RECORDED_BYTES", taken - 1)
    model(inputs[2])
    assert sizes_recorded(model) == [192]
    assert model.weights.pool.total_bytes() < 2 * taken
    for x in inputs:
        assert relative(host(model(x).last_hidden_state), exact(x).last_hidden_state) < 2e-6
    monkeypatch.setattr(ops.recording, "RECORDED_BYTES", 1 << 40)
    for x in inputs * 2:
        model(x)
    assert sorted(sizes_recorded(model)) == [64, 128, 192]


@pytest.mark.parametrize(("name", "value"), [("layer_norm_eps", 0.5), ("hidden_act", "relu"), ("num_attention_heads", 6)])
def test_a_recording_is_of_one_configuration(ops: Any, name: str, value: Any) -> None:
    model, _ = pair("RobertaPreLayerNormModel")
    inputs = ragged((3, 40))
    before = [model(**inputs).last_hidden_state.get() for _ in range(3)][-1]
    config, model.config = model.config, dataclasses.replace(model.config, **{name: value})
    exact = tinyroberta.RobertaPreLayerNormModel(model.config, model.tensors, backend="numpy", dtype="float64")
    for _ in range(3):
        assert relative(host(model(**inputs).last_hidden_state), exact(**inputs).last_hidden_state) < 2e-6
    model.config = config
    np.testing.assert_array_equal(model(**inputs).last_hidden_state.get(), before)
    assert len(sizes_recorded(model)) == 2
    del ops


FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attentions and states": ({}, {"output_attentions": True, "output_hidden_states": True}),
    "every place": ({}, {"padding": "compute"}),
    "a head mask": ({}, {"head_mask": [0.0, 1.0, 0.5]}),
    "a 3-D mask": ({}, {"attention_mask": np.tril(np.ones((5, 200, 200)))}),
    "a fraction in the mask": ({}, {"attention_mask": np.full((5, 200), 0.5)}),
    "relative_key": ({"position_embedding_type": "relative_key"}, {}),
    "relative_key_query": ({"position_embedding_type": "relative_key_query"}, {"output_attentions": True}),
    "chunks": ({"chunk_size_feed_forward": 20}, {}),
    "a function": ({"hidden_act": lambda x: x * x}, {}),
    "mish": ({"hidden_act": "mish"}, {}),
    "wide heads": ({"num_attention_heads": 1, "hidden_size": 136}, {}),
    "odd widths": ({"num_attention_heads": 3, "hidden_size": 33, "intermediate_size": 37}, {}),
    "a decoder": ({"is_decoder": True, "use_cache": False}, {}),
}


FOUR = [("highest", "cuBLASLt"), ("high", "cuBLASLt"), ("medium", "cuBLASLt"), ("highest", "sliced")]


@pytest.mark.parametrize(("precision", "route"), FOUR)
@pytest.mark.parametrize("feature", FEATURES)
def test_features(ops: Any, feature: str, precision: str, route: str) -> None:
    use(ops, route)
    changes, given = FEATURES[feature]
    model, exact = pair("RobertaPreLayerNormModel", dataclasses.replace(CONFIG, **changes), matmul_precision=precision)
    for _ in range(2):
        inputs = ragged() | given
        tolerance = BUDGETS[precision] * (4 if "states" in feature or changes.get("hidden_act") else 1)
        alike(model(**inputs), exact(**inputs), tolerance)


@pytest.mark.parametrize(("precision", "route"), FOUR)
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta-xl"])
def test_other_families(ops: Any, family: str, precision: str, route: str) -> None:
    use(ops, route)
    config = CONFIGS[family](**fields_of(CONFIG))
    name = {"roberta": "RobertaForMaskedLM", "xlm-roberta-xl": "XLMRobertaXLForMaskedLM"}[family]
    model, exact = pair(name, config, matmul_precision=precision)
    for given in ({}, {}, {}, {"output_hidden_states": True}):
        inputs = ragged() | given
        alike(model(**inputs), exact(**inputs), 2 * BUDGETS[precision])


@pytest.mark.parametrize("name", SEVEN)
def test_labels(ops: Any, name: str) -> None:  # noqa: ARG001
    model, exact = pair(name)
    inputs = ragged()
    labels: dict[str, Any] = {"labels": inputs["input_ids"] % 2}
    if name.endswith(("MultipleChoice", "SequenceClassification")):
        labels = {"labels": np.array([0, 1, 0, 1, 1])}
    if name.endswith("MultipleChoice"):
        inputs = {key: np.stack([value, np.roll(value, 1, 0)], 1) for key, value in inputs.items()}
    if name.endswith("QuestionAnswering"):
        labels = {"start_positions": np.zeros(5, int), "end_positions": np.array([0, 3, 60, 1, 9])}
    if name != "RobertaPreLayerNormModel":
        alike(model(**inputs, **labels), exact(**inputs, **labels), 1e-5)


@pytest.mark.parametrize(("precision", "route"), FOUR)
def test_a_cache_gives_what_the_whole_text_gives(ops: Any, precision: str, route: str) -> None:
    use(ops, route)
    config = dataclasses.replace(CONFIG, is_decoder=True)
    model, exact = pair("RobertaPreLayerNormForCausalLM", config, matmul_precision=precision)
    ids = np.random.default_rng().integers(3, 60, (3, 9))
    whole = exact(ids, use_cache=False).logits
    first = model(ids[:, :5])
    rest = model(ids[:, 5:], past_key_values=first.past_key_values)
    assert relative(host(rest.logits), whole[:, 5:]) < BUDGETS[precision]
    tuples = tuple(tuple(x.get().astype(np.float32)[:, :, :5] for x in layer) for layer in first.past_key_values)
    again = model(ids[:, 5:], past_key_values=tuples)  # as transformers hands them on
    assert relative(host(again.logits), whole[:, 5:]) < BUDGETS[precision]
    if precision == "highest":
        for arguments in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 5}):
            mask = np.array([[1] * 9, [0] * 4 + [1] * 5, [0] * 8 + [1]])
            ours, theirs = (m.generate(ids, mask, max_new_tokens=6, **arguments) for m in (model, exact))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("route", ["own", "sliced"])
def test_an_encoder_and_a_decoder(ops: Any, route: str) -> None:
    use(ops, route)
    encoder, exact_encoder = pair("RobertaPreLayerNormModel")
    config = dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True, hidden_size=24, decoder_start_token_id=0)
    decoder, exact_decoder = pair("RobertaPreLayerNormForCausalLM", config)
    random = np.random.default_rng()
    projection = {"weight": random.standard_normal((24, 48)) / 7, "bias": random.standard_normal(24)}
    extra = {"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    models = (encoder, decoder), (exact_encoder, exact_decoder)
    joined = [tinyroberta.EncoderDecoderModel(*parts, projection, extra) for parts in models]
    inputs = {key: value for key, value in ragged((9, 4)).items() if key != "token_type_ids"}
    inputs |= {"labels": random.integers(3, 60, (2, 6))}
    ours, exact = (model(**inputs) for model in joined)
    assert relative(host(ours.logits), exact.logits) < 1e-5
    assert abs(ours.loss - exact.loss) < 1e-5 * exact.loss
    answers = [model.generate(inputs["input_ids"], inputs["attention_mask"], max_new_tokens=5, num_beams=2) for model in joined]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("keep", [1, np.array([0, 3]), np.array([[1], [2], [3], [4], [0]])])
def test_logits_to_keep(ops: Any, keep: Any) -> None:  # noqa: ARG001
    model, exact = pair("RobertaPreLayerNormForMaskedLM")
    inputs = ragged()
    alike(model(**inputs, logits_to_keep=keep), exact(**inputs, logits_to_keep=keep), 2e-6)
    places = inputs["input_ids"] == 61  # nowhere
    assert model(**inputs, logits_to_keep=places).logits.shape == (0, 60)


def test_tied_weights_are_moved_once(ops: Any) -> None:
    word = np.ones((8, 4), np.float32)
    tree = ops.prepare({"words": Table(word, WORDS, True), "decoder": dense(word)}, Settings())
    assert tree["decoder"]["weight"].array is tree["words"]["weight"]


# f16, where no text can leave its range.

POST_NORM = CONFIGS["roberta"](**fields_of(CONFIG))
XL = CONFIGS["xlm-roberta-xl"](**fields_of(CONFIG))
ATTENTION = {"attention.self", "attention.output.dense"}
FEED_FORWARD = {"intermediate.dense", "output.dense"}
OWN_NORMS = {"attention.LayerNorm", "intermediate.LayerNorm"}
BIG = [2, 30]  # channels


def weights_like_trained(config: RobertaPreLayerNormConfig) -> dict[str, Any]:
    """Tensors of trained models' sizes."""
    random = np.random.default_rng()
    kind = tinyroberta.RobertaForMaskedLM if config is POST_NORM else tinyroberta.RobertaPreLayerNormForMaskedLM
    tensors = {name: np.array(x, np.float32) for name, x in kind(config, backend="numpy").tensors.items()}
    for name, x in tensors.items():
        if "LayerNorm" in name or "layer_norm" in name or name.endswith("bias"):
            x += random.standard_normal(x.shape) / 3
    return tensors


def named(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A plan's records by their places, those of layers without a prefix."""
    records: dict[str, Any] = {}
    for name, x in tree.items():
        place = f"{path}{name}"
        records |= (
            named(x, f"{place}.") if isinstance(x, dict) else {place.removesuffix(".qkv").removeprefix("encoder.layer."): x}
        )
    return records


def halves_of(ops: Any, tensors: dict[str, Any]) -> set[str]:
    planned = plan(nest(tensors))
    found = ops.weights.halves(planned)
    return {name for name, record in named(planned).items() if record in found}


def plant_halves(ops: Any, monkeypatch: pytest.MonkeyPatch, places: set[str]) -> None:
    """f16 in these places, whatever the weights say."""
    planted = lambda tree: {record for name, record in named(tree).items() if name in places}  # noqa: E731
    monkeypatch.setattr(ops.weights, "halves", planted)


@pytest.mark.parametrize("post_norm", [False, True])
def test_no_row_comes_further_than_its_bound(ops: Any, post_norm: bool) -> None:  # noqa: ARG001
    from tinyroberta.backends.cupy import half

    random = np.random.default_rng()
    weight, (gain, shift), bias = random.standard_normal((90, 48)), random.standard_normal((2, 48)), random.standard_normal(90)
    norms = [Norm(gain, shift, STREAM, 0), Norm(gain / 2, shift, STREAM, 1)][: 1 + post_norm]
    made = half._made(weight, bias, Normed(tuple(norms)))
    rows = np.concatenate([random.standard_normal((20000, 48)), weight * gain, -weight * gain, 1e8 * np.eye(48)])
    for norm in norms:
        normed = definition.layer_norm(rows, norm.weight, norm.bias, 1e-12)
        assert (np.abs(normed).max(0) <= half._normed(norm).most).all()
        np.testing.assert_allclose(np.sqrt(np.square(normed[:20000]).mean(0)), half._normed(norm).mean, 0.05)
        y = normed @ weight.T + bias
        assert (np.abs(y).max(0) <= made.most).all()
    first = definition.layer_norm(rows, gain, shift, 1e-12) @ weight.T + bias
    pull = weight * gain
    reached = np.linalg.norm(pull - pull.mean(1, keepdims=True), axis=1) / np.linalg.norm(pull, axis=1)
    assert (np.abs(first).max(0) > 0.9 * reached * made.most).all()  # rows made for it come near, but that a norm's have mean 0
    assert (half._made(weight, bias + 1e4 * (np.arange(90) == 7), Normed(tuple(norms))).most[7] > 9e3).all()
    huge = Norm(np.ones(2), np.full(2, 1e7), STREAM, 0)  # what cancels in the weights is rounded first
    assert half._made(np.array([[1.0, -1.0]]), np.zeros(1), Normed((huge,))).most[0] > 2e7 * 2.0**-11


def by(factor: float, *parts: str, only: Any = ...) -> Callable[[dict[str, Any]], None]:
    """Multiply tensors of the first layer, those that it has, or channels of theirs."""

    def change(tensors: dict[str, Any]) -> None:
        for name in (f"encoder.layer.0.{part}" for part in parts):
            if name in tensors:
                tensors[name][only] *= np.float32(factor)

    return change


def set_to(value: float, part: str, at: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors[f"encoder.layer.0.{part}"].__setitem__(at, value)


def both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for each in changes:
            each(tensors)

    return change


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {  # what is changed, what is not f16 any more
    "nothing": (lambda _: None, set()),
    "numbers that training has given up": (by(1e-12, "attention.self.key.weight", "intermediate.dense.weight", only=3), set()),
    "gains": (by(3e4, "attention.LayerNorm.weight"), ATTENTION),
    "shifts": (set_to(1e5, "attention.LayerNorm.bias", 3), ATTENTION),
    "gains that leave nothing": (by(1e-9, "intermediate.LayerNorm.weight", "intermediate.LayerNorm.bias"), FEED_FORWARD),
    "keys": (by(1e4, "attention.self.key.weight"), ATTENTION),
    "one number of a key": (set_to(7e4, "attention.self.key.weight", (3, 4)), ATTENTION),
    "a query's bias": (set_to(1e6, "attention.self.query.bias", 5), ATTENTION),
    "values that are too small": (by(1e-5, "attention.self.value.weight", "attention.self.value.bias"), ATTENTION),
    "the context's weight": (set_to(1e6, "attention.output.dense.weight", (0, 0)), {"attention.output.dense"}),
    "the context's weight, too small": (by(1e-10, "attention.output.dense.weight"), {"attention.output.dense"}),
    "the inner weight": (by(1e5, "intermediate.dense.weight"), FEED_FORWARD),
    "a NaN": (set_to(math.nan, "intermediate.dense.weight", (1, 1)), FEED_FORWARD),
    "the inner bias": (set_to(-4e4, "intermediate.dense.bias", 5), FEED_FORWARD),
    "the second weight": (set_to(math.inf, "output.dense.weight", (1, 1)), {"output.dense"}),
}


@pytest.mark.parametrize("config", [CONFIG, POST_NORM])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_f16_is_where_the_weights_allow_it(ops: Any, config: RobertaPreLayerNormConfig, spoilt: str) -> None:
    tensors = weights_like_trained(config)
    whole = halves_of(ops, tensors)
    places = ATTENTION | FEED_FORWARD | (OWN_NORMS if config is CONFIG else set())
    head = {"lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"}
    assert whole == {f"{index}.{place}" for index in (0, 1) for place in places} | head
    change, lost = SPOILT[spoilt]
    if config is POST_NORM and spoilt in ("gains", "shifts", "gains that leave nothing"):
        return  # its norms are the sublayers' before
    change(tensors)
    norm = {"attention.self": "attention.LayerNorm", "intermediate.dense": "intermediate.LayerNorm"}
    lost = lost | ({norm[place] for place in lost if place in norm} if config is CONFIG else set())
    assert whole - halves_of(ops, tensors) == {f"0.{place}" for place in lost}


@pytest.mark.parametrize(("norm", "lost"), [
    ("embeddings.LayerNorm", {"0.attention.self", "0.attention.output.dense"}),
    ("encoder.layer.0.attention.output.LayerNorm", {"0.intermediate.dense", "0.output.dense"}),
    ("encoder.layer.0.output.LayerNorm", {"1.attention.self", "1.attention.output.dense"}),
    ("encoder.layer.1.output.LayerNorm", {"lm_head.dense"}),
    ("lm_head.layer_norm", {"lm_head.layer_norm", "lm_head.decoder"}),
])  # fmt: skip
def test_a_post_norm_models_rows_are_those_of_the_norm_before(ops: Any, norm: str, lost: set[str]) -> None:
    tensors = weights_like_trained(POST_NORM)
    whole = halves_of(ops, tensors)
    tensors[f"{norm}.weight"][3] = 1e5
    assert whole - halves_of(ops, tensors) == lost


def test_the_demonstration_is_multiplied_in_f16(ops: Any) -> None:
    """As every model tried that was trained: TF32 is the exception."""
    tensors = tinyroberta.load(Path(tinyroberta.__file__).parent / "demo", backend="numpy").tensors
    dense = {name.removesuffix(".weight") for name, x in tensors.items() if name.endswith("dense.weight") and x.ndim == 2}
    found = halves_of(ops, tensors)
    assert {name.removeprefix("encoder.layer.") for name in dense} <= found
    assert sum(name.endswith("attention.self") for name in found) == sum(
        name.endswith("attention.output.dense") for name in found
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("config", [CONFIG, POST_NORM])
def test_high_multiplies_f16(ops: Any, route: str, config: RobertaPreLayerNormConfig) -> None:
    use(ops, route)
    kind = tinyroberta.RobertaForMaskedLM if config is POST_NORM else tinyroberta.RobertaPreLayerNormForMaskedLM
    model = kind(config, weights_like_trained(config), backend="cupy", matmul_precision="high")
    stand_in.launched.clear()
    model(**ragged((3, 40)))
    assert not any(name in ("linear", "attention<32, false>") for name in stand_in.launched)
    product = "cublasLtMatmul" if route == "cuBLASLt" else "linear_mma"
    assert sum(product in name for name in stand_in.launched) == 2 * 4 + 2
    assert sum("attention_mma<f16" in name for name in stand_in.launched) == 2
    made = [name for name in stand_in.launched if "layer_norm<f16" in name]
    assert len(made) == (5 if config is CONFIG else 1)  # post-norm rows are the residual stream too, and converted


def steep(tensors: dict[str, Any]) -> None:
    """Token 7 alone has a large channel 3, which the first layer's first inner number reads."""
    tensors["embeddings.word_embeddings.weight"][7, 3] = 1e3
    for name in ("embeddings.LayerNorm", "encoder.layer.0.intermediate.LayerNorm", "encoder.layer.0.attention.output.LayerNorm"):
        if f"{name}.weight" in tensors:
            tensors[f"{name}.weight"][3], tensors[f"{name}.bias"][3] = 1, 0
    tensors["encoder.layer.0.intermediate.dense.weight"][0] = 15000 * (np.arange(48) == 3)
    tensors["encoder.layer.0.output.dense.weight"][:, 0] *= 1e-4


EVERY = slice(None)
OUTLIERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "in a weight": both(by(1e6, "intermediate.dense.weight", only=2), by(1e-6, "output.dense.weight", only=(EVERY, 2))),
    "in a norm's gains": both(
        by(1e6, "intermediate.LayerNorm.weight", "attention.output.LayerNorm.weight", only=BIG),
        by(1e-6, "intermediate.dense.weight", only=(EVERY, BIG)),
    ),
    "in a bias": both(
        set_to(1e6, "attention.self.value.bias", 9), by(1e-6, "attention.output.dense.weight", only=(EVERY, 9))
    ),
    "in the residual stream": by(1e6, "output.dense.weight", "attention.output.dense.weight"),
    "in what some texts reach": steep,
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("config", [CONFIG, POST_NORM])
@pytest.mark.parametrize("outlier", OUTLIERS)
def test_outliers_are_not_infinite_in_high(
    ops: Any, monkeypatch: pytest.MonkeyPatch, route: str, config: RobertaPreLayerNormConfig, outlier: str
) -> None:
    use(ops, route)
    name = "RobertaModel" if config is POST_NORM else "RobertaPreLayerNormModel"
    tensors = {name: x for name, x in weights_like_trained(config).items() if not name.startswith("lm_head")}
    whole = halves_of(ops, tensors)
    OUTLIERS[outlier](tensors)
    exact = getattr(tinyroberta, name)(config, tensors, backend="numpy", dtype="float64")

    def error(reached: bool) -> float:
        model, worst = getattr(tinyroberta, name)(config, tensors, backend="cupy", matmul_precision="high"), 0.0
        for _ in range(3):  # eager, recorded, replayed
            inputs = ragged((5, 40))
            ids = inputs["input_ids"]
            ids[ids == 7] = 8
            ids[1, 20] = 7 if reached else 8
            out, wanted = host(model(**inputs).last_hidden_state), exact(**inputs).last_hidden_state
            worst = max(worst, relative(out, wanted) if np.isfinite(out).all() else math.inf)
        return worst

    assert error(reached=True) < 4 * BUDGETS["high"]
    assert error(reached=False) < 4 * BUDGETS["high"]
    if outlier == "in the residual stream":  # which is float32, whatever the products read
        return
    plant_halves(ops, monkeypatch, whole)  # as without the outlier
    with np.errstate(over="ignore"):
        assert error(reached=True) > 1e-2
        assert outlier != "in what some texts reach" or error(reached=False) < 4 * BUDGETS["high"]


@pytest.mark.parametrize("config", [CONFIG, POST_NORM])
def test_what_cross_attention_reads_is_not_infinite_in_high(
    ops: Any, monkeypatch: pytest.MonkeyPatch, config: RobertaPreLayerNormConfig
) -> None:
    use(ops, "cuBLASLt")
    config = dataclasses.replace(config, is_decoder=True, add_cross_attention=True)
    kind = (
        tinyroberta.RobertaPreLayerNormForCausalLM if config.model_type == CONFIG.model_type else tinyroberta.RobertaForCausalLM
    )
    tensors = {name: np.array(x, np.float32) for name, x in kind(config, backend="numpy").tensors.items()}
    for name, x in tensors.items():
        if name.endswith(("crossattention.self.key.weight", "crossattention.self.value.weight")):
            x[:, BIG] *= np.float32(1e-6)
    found = halves_of(ops, tensors)
    assert not any("crossattention" in place for place in found)
    if config.model_type != CONFIG.model_type:  # what the feed-forward reads, with a source and without
        for norm in ("attention", "crossattention"):
            name = f"encoder.layer.0.{norm}.output.LayerNorm.weight"
            wide = tensors | {name: tensors[name] * np.float32(1e5)}
            assert found - halves_of(ops, wide) == {"0.intermediate.dense", "0.output.dense"}
    exact = kind(config, tensors, backend="numpy", dtype="float64")
    source = np.random.default_rng().standard_normal((2, 5, 48))
    source[..., BIG] *= 1e6
    inputs = {"input_ids": np.random.default_rng().integers(3, 60, (2, 9)), "encoder_hidden_states": source}

    def error() -> float:
        model = kind(config, tensors, backend="cupy", matmul_precision="high")
        return relative(host(model(**inputs).logits), exact(**inputs).logits)

    assert error() < 4 * BUDGETS["high"]
    plant_halves(ops, monkeypatch, {f"{index}.crossattention.self.{part}" for index in "01" for part in ("key", "value")})
    with np.errstate(over="ignore"):
        assert not error() < 4 * BUDGETS["high"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("hidden_act", ["relu2", lambda x: x * x * x])
def test_an_activation_that_leaves_the_range_of_f16(ops: Any, route: str, hidden_act: Any) -> None:
    use(ops, route)
    config = dataclasses.replace(CONFIG, hidden_act=hidden_act)
    tensors = {name: x for name, x in weights_like_trained(config).items() if not name.startswith("lm_head")}
    by(1000, "intermediate.dense.weight")(tensors)
    assert "0.output.dense" in halves_of(ops, tensors)
    model = tinyroberta.RobertaPreLayerNormModel(config, tensors, backend="cupy", matmul_precision="high")
    exact = tinyroberta.RobertaPreLayerNormModel(config, tensors, backend="numpy", dtype="float64")
    for _ in range(3):
        inputs = ragged((7, 30))
        out, wanted = host(model(**inputs).last_hidden_state), exact(**inputs).last_hidden_state
        assert relative(out, wanted) < 4 * BUDGETS["high"]


def test_a_head_mask_that_leaves_the_range_of_f16(ops: Any) -> None:
    use(ops, "cuBLASLt")
    model, exact = pair("RobertaPreLayerNormModel", matmul_precision="high")
    inputs = ragged((7, 30)) | {"head_mask": [1e6, 0.0, 1.0]}
    for more in ({}, {"output_attentions": True}):
        alike(model(**inputs, **more), exact(**inputs, **more), 4 * BUDGETS["high"])


def test_a_cache_of_f16_takes_what_f16_does_not_hold(ops: Any) -> None:
    from tinyroberta.cache import LayerCache

    past = LayerCache(np.empty((2, 0, 0, 0)), np.empty((2, 0, 0, 0)))
    small, large = (ops.cp.asarray(np.full((4, 6), value, dtype)) for value, dtype in ((1, np.float16), (1e6, np.float32)))
    past.extend(small, small, 2)
    past.extend(large, large, 2)
    keys, values = past.extend(small, small, 2)
    for x in (keys.get(), values.get()):
        np.testing.assert_array_equal(x[0, 0, :, 0], [1, 1, 1e6, 1e6, 1, 1])


# What cannot be had is said.


@pytest.mark.parametrize(
    ("settings", "told"), [({"dtype": "float64"}, "numpy backend"), ({"reproducible": True}, "reproducible")]
)
def test_settings_that_a_gpu_does_not_do(ops: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(Error, match=told):
        ops.prepare({}, Settings(**settings))


def missing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None] | None) -> str:
    with stand_in.installed() as module:
        if change is None:
            monkeypatch.setitem(sys.modules, "cupy", None)
        else:
            change(module)
        with pytest.raises(Error) as told:
            load_backend("cupy")
        monkeypatch.undo()
    return str(told.value)


@pytest.mark.parametrize(("precision", "route"), WAYS)
@pytest.mark.parametrize("config", [CONFIG, POST_NORM, XL])
def test_a_trace_changes_no_bit(ops: Any, precision: str, route: str, config: RobertaPreLayerNormConfig) -> None:
    use(ops, route)
    kind, inputs = KIN[config.model_type]["ForMaskedLM"], ragged((3, 40))
    tensors = new_model(kind, config).tensors
    model = kind(config, tensors, backend="cupy", matmul_precision=precision)
    exact = kind(config, tensors, backend="numpy", dtype="float64")
    seen = assert_traced(model, inputs)
    with tinyroberta.trace(exact) as expected:
        exact(**inputs)
    assert list(seen) == list(expected)
    for name in expected:
        assert relative(seen[name], expected[name]) < {"highest": 1e-5, "high": 1e-2, "medium": 6e-2}[precision], name


def test_norms_whose_gains_the_weights_took_in_are_shown_as_the_checkpoint_has_them(ops: Any) -> None:
    use(ops, "sliced")
    inputs, norm = ragged((3, 40)), "encoder.layer.1.intermediate.LayerNorm"
    kind = tinyroberta.RobertaPreLayerNormForMaskedLM
    tensors = new_model(kind, CONFIG).tensors
    tensors[f"{norm}.weight"][[3, 7]] = 60, -40
    model, exact = kind(CONFIG, tensors, backend="cupy"), kind(CONFIG, tensors, backend="numpy", dtype="float64")
    with tinyroberta.trace(model) as seen, tinyroberta.trace(exact) as expected:
        model(**inputs)
        exact(**inputs)
    assert ops.to_numpy(model.weights["encoder"]["layer"]["1"]["intermediate"]["LayerNorm"]["weight"])[3] != 60
    error = np.abs(seen[norm] - expected[norm]).max(0) / np.abs(expected[norm]).max(0)
    assert error.max() < 1e-4


@pytest.mark.parametrize(("precision", "route"), WAYS)
def test_a_trace_replaces(ops: Any, precision: str, route: str) -> None:
    use(ops, route)
    model, _ = pair("RobertaPreLayerNormForMaskedLM", matmul_precision=precision)
    one, other = ragged((3, 40)), ragged((3, 40))
    expected = model(**other).logits.get()
    with tinyroberta.trace(model) as source:
        model(**other)
    for name in ("embeddings", "encoder.layer.0", "LayerNorm", "lm_head"):
        with tinyroberta.trace(model, [], {name: lambda name, _: source[name]}):
            np.testing.assert_array_equal(model(**one).logits.get(), expected)
    for name in model.tap_names():
        with tinyroberta.trace(model, [name], {name: lambda _, x: 1.5 * x + 0.25 * np.arange(x.shape[-1]) ** 0.5}) as seen:
            changed = model(**other).logits.get()
        assert np.isfinite(changed).all()
        assert not np.array_equal(changed, expected), name
        with tinyroberta.trace(model, [], {name: lambda name, _, found=seen: found[name]}):
            assert relative(model(**other).logits.get(), changed) < (1e-4 if precision == "highest" else 1e-2), name


def test_a_trace_plays_no_recording_and_leaves_them(ops: Any) -> None:
    use(ops, "own")
    model, _ = pair("RobertaPreLayerNormModel")
    inputs = ragged((3, 40))
    expected = [model(**inputs).last_hidden_state.get() for _ in range(3)][-1]
    held = list(model.weights.recordings.items())
    assert held[0][1] is not None
    with tinyroberta.trace(model, "LayerNorm") as seen:
        np.testing.assert_array_equal(model(**inputs).last_hidden_state.get(), expected)
    assert seen.calls
    assert list(model.weights.recordings.items()) == held
    np.testing.assert_array_equal(model(**inputs).last_hidden_state.get(), expected)


def test_a_number_past_f16_replaces_all_the_same(ops: Any) -> None:
    use(ops, "own")
    model = tinyroberta.RobertaPreLayerNormForMaskedLM(
        CONFIG, weights_like_trained(CONFIG), backend="cupy", matmul_precision="high"
    )
    name = "encoder.layer.0.attention.self.query"
    with tinyroberta.trace(model, name, {name: lambda _, x: np.where(x == x.max(), 1e5, x)}) as seen:
        assert np.isfinite(model(**ragged((3, 40))).logits.get()).all()
    assert seen[name].max() == 1e5


def test_a_machine_without_cupy_or_a_gpu_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(module: Any) -> None:
        def raising() -> int:
            raise stand_in.CUDARuntimeError("cudaErrorInsufficientDriver")

        monkeypatch.setattr(module.cuda.runtime, "getDeviceCount", raising)

    assert "pip install 'tinyroberta[cuda13]'" in missing(monkeypatch, None)
    assert "cudaErrorInsufficientDriver" in missing(monkeypatch, no_driver)
    old = missing(monkeypatch, lambda module: monkeypatch.setattr(module.cuda.Device, "compute_capability", "75"))
    assert "8.0" in old


def test_a_route_that_there_is_not(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYROBERTA_GPU", "abacus")
    with pytest.raises(Error, match=r"'abacus'; this version has float, sliced"):
        ops.prepare({}, Settings())


@pytest.mark.parametrize("route", ["", "float", "sliced"])
def test_the_route_is_described(ops: Any, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setenv("TINYROBERTA_GPU", route)
    line = ops.describe()[-1]
    assert (route or ops.device.ROUTE) in line
    assert (f"TINYROBERTA_GPU={route} asks" if route else ops.device.REASON) in line


def test_info_says_what_runs_on_the_gpu(ops: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    assert tinyroberta.cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "cupy backend: float32\n  GPU: stand-in\n" in printed
    assert "in highest precision: float, plain float32" in printed  # as TINYROBERTA_GPU asks
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "tinyroberta.backends.cupy")
    assert tinyroberta.cli.main(["info"]) == 0
    assert "cupy backend: backend='cupy' needs CuPy, which is not installed: pip install" in capsys.readouterr().out


# How kernels are launched, and kept.


def test_every_parameter_is_read_as_the_compiler_reads_it(ops: Any) -> None:
    words = {"int": "i4", "i64": "i8", "float": "f4"}
    for file, names in ops.launch.KERNELS.items():
        declared = ops.launch.parameters(file)
        assert declared.keys() == {name.split("<")[0] for name in names}
        kernels = ops.launch._module(file, 0)[0].kernels
        for name in names:
            read = [next((words[kind] for kind, made in ops.launch.NUMBERS.items() if made is number), "P")
                    for number in declared[name.split("<")[0]].values()]  # fmt: skip
            assert read == [word if len(word) == 2 else "P" for word in kernels[name].signature], name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"K": None}, r"split takes x, y, n: missing are \[\], unknown are \['K'\]"),
        ({"n": ...}, r"missing are \['n'\], unknown are \[\]"),
        ({"n": ..., "N": 4}, r"missing are \['n'\], unknown are \['N'\]"),
        ({"n": 4.0}, "split: n: 'float' object cannot be interpreted as an integer"),
        ({"n": 1 << 63}, "split: n: .*too (large|big)"),
        ({"x": 4}, "split: x: an array of the device or None is needed, not int"),
        ({"x": np.zeros(4, np.float32)}, "split: x: an array of the device or None is needed, not ndarray"),
    ],
)
def test_a_launch_gives_every_parameter_by_its_name(ops: Any, change: dict[str, Any], told: str) -> None:
    right = {"x": ops.asarray(np.ones(4)), "y": ops.cp.empty((3, 4), BF16), "n": 4}
    ops.launch.launch("split", (1,), (256,), **right)
    assert (host(right["y"])[0] == 1).all()
    stand_in.launched.clear()
    with pytest.raises(TypeError, match=told):
        ops.launch.launch("split", (1,), (256,), **{name: x for name, x in (right | change).items() if x is not ...})
    assert not stand_in.launched


def code_of(path: Path) -> Any:
    return path.read_bytes(), path.with_suffix(".json").read_text()


@pytest.mark.parametrize("lost", [".cubin", ".json", "an empty .cubin", "other names"])
def test_machine_code_that_is_not_whole_is_made_again(
    ops: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    path, symbols = ops.compiler.kept(AXPY, "sm_90", ["axpy<float>"])
    whole = code_of(path)
    if lost == "an empty .cubin":
        path.write_bytes(b"")
    elif lost == "other names":
        path.with_suffix(".json").write_text("[]")
    else:
        path.with_suffix(lost).unlink()
    assert ops.compiler.kept(AXPY, "sm_90", ["axpy<float>"]) == (path, symbols)
    assert code_of(path) == whole
    monkeypatch.setattr(ops.compiler, "compiled", None)
    assert ops.compiler.kept(AXPY, "sm_90", ["axpy<float>"]) == (path, symbols)


def test_threads_that_keep_the_same_code_do_not_meet(ops: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    replace, written = Path.replace, threading.Barrier(2)

    def late(part: Path, to: Path) -> Path:
        written.wait(10)  # both have written before either renames
        return replace(part, to)

    monkeypatch.setattr(Path, "replace", late)
    with ThreadPoolExecutor(2) as threads:
        kept = list(threads.map(lambda _: ops.compiler.kept(AXPY, "sm_90", ["axpy<float>"])[0], range(2)))
    assert {path.parent for path in kept} == {tmp_path}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".cubin", ".json"]


# Compilation for real GPUs.

REGISTERS = {"activation": 32, "attention": 128, "attention_mma": 255, "attention_wgmma": 128, "attention_split": 255,
             "split": 32, "sums": 32, "linear_sliced_wgmma": 255, "embed": 48, "embed_layer_norm": 64, "layer_norm": 64,
             "linear": 64, "linear_mma": 128, "probabilities": 64, "values": 48, "cut_rows": 168, "layer_norm_cut": 72,
             "linear_sliced": 240}  # fmt: skip


@pytest.mark.skipif(not nvrtc.installed(), reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_every_kernel_compiles_for(ops: Any, architecture: str) -> None:
    for file, names in ops.launch.KERNELS.items():
        if file in ops.launch.HOPPER and architecture != "sm_90a":
            continue
        for name, taken in nvrtc.compiled(ops.launch.source(file), architecture, names).items():
            assert taken.spills == taken.stack == 0, (name, taken)
            assert taken.registers <= REGISTERS[name.split("<")[0]], (name, taken)


@pytest.mark.skipif(not nvrtc.installed(), reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_planted_what_only_a_real_compiler_sees(ops: Any) -> None:
    code = ops.launch.source("layer_norm.cu")
    with pytest.raises(Error, match="INFINITY"):
        nvrtc.compiled(code.replace("sum = 0.f,", "sum = INFINITY,"), "sm_90", ["layer_norm<float, 1>"])
    for file, name, right in (
        ("linear_mma.cu", "linear_mma<bf16, bf16>", 16),
        ("linear_sliced.cu", "linear_sliced<3>", 32),
    ):
        code = ops.launch.source(file).replace(f"m16n8k{right}.row.col", "m16n8k15.row.col")
        with pytest.raises(Error, match=r"ptxas|PTX|Instruction"):
            nvrtc.compiled(code, "sm_90", [name])
    crowded = ops.launch.source("attention_mma.cu").replace("__launch_bounds__(128, 2)", "__launch_bounds__(128, 8)")
    assert nvrtc.compiled(crowded, "sm_90", ["attention_mma<bf16, 128, true>"])["attention_mma<bf16, 128, true>"].spills > 0
    crowded = ops.launch.source("linear_sliced.cu").replace("__launch_bounds__(256)", "__launch_bounds__(256, 2)")
    assert nvrtc.compiled(crowded, "sm_90", ["linear_sliced<4>"])["linear_sliced<4>"].spills > 0


# Planted bugs: what each check above is worth.


def planted(ops: Any, monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str) -> None:
    assert right in ops.launch.SOURCES[file], f"{file} no longer holds {right}"
    monkeypatch.setitem(ops.launch.SOURCES, file, ops.launch.SOURCES[file].replace(right, wrong, 1))
    ops.launch._module.cache_clear()
    ops.launch._kernel.cache_clear()


@pytest.fixture
def unplanted(ops: Any) -> Iterator[None]:
    yield
    ops.launch._module.cache_clear()
    ops.launch._kernel.cache_clear()


def seen(check: Callable[[], float], tolerance: float) -> bool:
    """Whether a check fails in at least one order of threads."""
    results = []
    for order in emulator.ORDERS:
        stand_in.order = order
        try:
            error = check()
            results.append(not error < tolerance)
        except (emulator.EmulatorError, MemoryError):
            results.append(True)
        finally:
            stand_in.order = "forward"
    return any(results)


def product_error(ops: Any, precision: str, shape: tuple[int, int, int] = (70, 50, 104)) -> float:
    random = np.random.default_rng()
    M, N, K = shape
    x, w = (random.standard_normal(s).astype(BF16).astype(np.float32) for s in ((M, K), (N, K)))
    layer = ops.prepare({"layer": dense(w)}, Settings(matmul_precision=precision))["layer"]
    return relative(host(ops.linear(ops.asarray(x), **layer)), x.astype(np.float64) @ w.T)


def attention_error(ops: Any, dtype: Any, causal: bool = True) -> float:
    q, k, v = np.random.default_rng().standard_normal((3, 150, 2 * 64))
    out, exact, _ = attended(ops, (q, k, v), spread((85, 65), (85, 65), causal), 2, dtype)
    return relative(out, exact)


PLANTED = {  # file, what stands there, the bug, the check that sees it
    "no barrier before the tile is read": ("linear.cu", "    __syncthreads();\n#pragma unroll", "#pragma unroll", "product"),
    "no barrier before the tile is filled again": ("linear.cu", "    __syncthreads();\n  }\n", "  }\n", "product"),
    "a row too many is written": ("linear.cu", "if (m >= M || n >= N) continue;", "if (m > M || n >= N) continue;", "product"),
    "a copy is waited for too late": ("linear_mma.cu", "fetch_wait<STAGES - 2>();", "fetch_wait<STAGES - 1>();", "product16"),
    "no barrier after the wait": ("linear_mma.cu", "    __syncthreads();\n    if (step", "    if (step", "product16"),
    "rows that no 16-byte access meets": ("linear_mma.cu", "PITCH = DEPTH + 8", "PITCH = DEPTH + 4", "product16"),
    "a wrong lane gives the address": ("linear_mma.cu", "lane / 8 % 2 * 8", "lane / 16 % 2 * 8", "product16"),
    "the tail of K is not zeroed": ("primitives.cuh", "i < valid ? global[i] : T{0}", "global[i]", "product16 odd"),
    "sums are not scaled down": ("attention.cu", "sum[i][c] *= fade", "sum[i][c] *= 1.f", "attention"),
    "one key too many under causality": ("attention.cu", "key <= before + row", "key <= before + row + 1", "attention"),
    "half the lanes' totals are left out": (
        "attention.cu", "distance = 8; distance; distance >>= 1) total",
        "distance = 4; distance; distance >>= 1) total", "attention",
    ),
    "keys are read while they are copied": (
        "attention_mma.cu", "    fetch_wait<0>();\n    __syncthreads();  //", "    __syncthreads();  //", "attention16",
    ),
    "no barrier between steps": (
        "attention_mma.cu", "    fetch_wait<0>();\n    __syncthreads();  //", "    fetch_wait<0>();  //", "attention16",
    ),
    "values are not transposed": ("attention_mma.cu", "load_tiles<true>", "load_tiles<false>", "attention16"),
    "a shuffle in a branch": (
        "primitives.cuh", "for (int distance = 16; distance; distance >>= 1) x +=",
        "if (threadIdx.x < 16) for (int distance = 16; distance; distance >>= 1) x +=", "norm",
    ),
    "one pass for the variance": (
        "norm.cuh", "squares += (x[j] - mean) * (x[j] - mean)", "squares += x[j] * x[j] - mean * mean", "norm",
    ),
    "digits are waited for too late": ("linear_sliced.cu", "fetch_wait<STAGES - 2>();", "fetch_wait<STAGES - 1>();", "sliced"),
    "no barrier after the digits' wait": ("linear_sliced.cu", "    __syncthreads();\n    if (step", "    if (step", "sliced"),
    "digits that no 16-byte access meets": ("linear_sliced.cu", "PITCH = CUT_BYTES + 16", "PITCH = CUT_BYTES + 8", "sliced"),
    "a wrong lane gives the digits' address": ("linear_sliced.cu", "lane / 8 % 2 * 16", "lane / 16 % 2 * 16", "sliced"),
    "a product of digits is left out": ("linear_sliced.cu", "e < 3 && d + e", "e < 2 && d + e", "sliced"),
    "a diagonal counts for the next": ("linear_sliced.cu", "mma(sum[d + e]", "mma(sum[d + e - (d == 2)]", "sliced"),
    "the diagonals are added up the other way": (
        "digits.cuh", "float value = (float)sum(DIAGONALS - 1);",
        "float value = 0.f, f = 1.f; for (int d = 0; d < DIAGONALS; d++, f *= 0x1p-8f) value += sum(d) * f; if (0)", "sliced",
    ),
    "the sum is rounded once": (
        "digits.cuh", "__fadd_rn(__fmul_rn(value, scale), bias)", "fmaf(value, scale, bias)", "sliced",
    ),
    "a column too many is written": (
        "linear_sliced.cu", "if (m >= M || n >= N) continue;", "if (m >= M || n > N) continue;", "sliced",
    ),
    "split scores are read before they are there": (
        "attention_split.cu", "products_wait<1>(s);", "products_wait<2>(s);", "attention",
    ),
    "a part is left out": ("attention_split.cu", "int order = 2", "int order = 1", "attention"),
    "what is left is not taken": ("split.cu", "left[j] -= ", "left[j] -= 0 * ", "attention"),
    "split values are added while they are multiplied": (
        "attention_split.cu", "products_wait<0>(added);  // of", "//", "attention",
    ),
    "scores are read before they are there": (
        "attention_wgmma.cu", "products_wait<1>(s);", "products_wait<2>(s);", "attention16",
    ),
    "sums are scaled while values are added": (
        "attention_wgmma.cu", "products_wait<0>(sum);  // of", "//", "attention16",
    ),
    "keys are multiplied while they are copied": (
        "attention_wgmma.cu", "    fetch_wait<0>();\n    copies", "    copies", "attention16",
    ),
    "no barrier between a warpgroup's steps": (
        "attention_wgmma.cu", "    __syncthreads();  // the next", "    // the next", "attention16",
    ),
    "pieces of a row are not permuted": ("wgmma.cuh", "(c ^ r / (8 / PIECES) % PIECES)", "c", "attention16"),
    "values are read by rows": ("attention_wgmma.cu", "product<T, true>", "product<T, false>", "attention16"),
    "digits are overwritten while they are multiplied": (
        "linear_sliced_wgmma.cu", "products_wait<1>();", "products_wait<3>();", "large sliced",
    ),
    "no barrier before digits are multiplied": ("linear_sliced_wgmma.cu", "    __syncthreads();", "", "sliced"),
    "digits are multiplied while they are copied": (
        "linear_sliced_wgmma.cu", "fetch_wait<STAGES - 3>();", "fetch_wait<STAGES - 2>();", "sliced",
    ),
    "a warpgroup's rows are those of the other": ("linear_sliced_wgmma.cu", "group * 64 * CUT_STEP", "0", "large sliced"),
    "digits are not signed": ("cut.cuh", "n = (n + 128) >> 8", "n = n >> 8", "cut"),
    "a number is cut off, not rounded": ("cut.cuh", "(int)rintf(x[j] * gain)", "(int)(x[j] * gain)", "cut"),
    "the scale of tiny rows is not bounded": ("cut.cuh", ", 0x1p126f)", ", 0x1p127f)", "cut"),
    "the largest of half a row": ("cut.cuh", "__reduce_max_sync(WHOLE_WARP, most)", "most", "cut"),
    "no zeros past a row's end": ("cut.cuh", "int i = width + threadIdx.x * V;", "int i = width + 64 + threadIdx.x * V;", "cut"),
    "a norm's rows are cut without their shift": ("layer_norm.cu", "x + (size_t)row * width}, weight, bias,",
                                                  "x + (size_t)row * width}, weight, weight,", "norm cut"),
    "a row that is not finite is cut as it is": (
        "cut.cuh", "bool finite = most < 0x7f800000u;", "bool finite = true;", "not finite",
    ),
}  # fmt: skip


def norm_error(ops: Any) -> float:
    x = np.random.default_rng().standard_normal((9, 50)).astype(np.float32) + 1000
    ones = ops.asarray(np.ones(50))
    out = ops.layer_norm(ops.asarray(x), ops.weights.Gains(ones, np.dtype(np.float32)), ones, 1e-5)
    return relative(host(out), definition.layer_norm(x.astype(np.float64), 1.0, 1.0, 1e-5))


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_in_a_kernel(ops: Any, monkeypatch: pytest.MonkeyPatch, unplanted: None, bug: str) -> None:  # noqa: ARG001
    file, right, wrong, kind = PLANTED[bug]
    monkeypatch.setattr(ops.device, "hopper", lambda: any(kind in file for kind in ("wgmma", "split")))
    checks: dict[str, tuple[Callable[[], float], float]] = {
        "product": (lambda: product_error(ops, "highest"), 1e-5),
        "product16": (lambda: product_error(ops, "medium"), 1e-5),
        "product16 odd": (lambda: product_error(ops, "medium", (70, 50, 101)), 1e-5),
        "attention": (lambda: attention_error(ops, np.float32), 1e-5),
        "attention16": (lambda: attention_error(ops, BF16), UNIT_BF16),
        "norm": (lambda: norm_error(ops), 1e-3),
        "sliced": (lambda: sum(sliced_misses(ops, (67, 50, 330), second) for second in (False, True)), 1),
        "large sliced": (lambda: large_sliced_misses(ops), 1),
        "cut": (lambda: cut_misses(ops, 9, 150), 1),
        "norm cut": (lambda: norm_cut_misses(ops, 9, 50), 1),
        "not finite": (lambda: not_finite_misses(ops), 1),
    }
    assert not seen(*checks[kind])
    planted(ops, monkeypatch, file, right, wrong)
    assert seen(*checks[kind])


def large_sliced_misses(ops: Any) -> int:
    block, ops.digits._block = ops.digits._block, lambda *_: (2, 128, 4)
    try:
        return sliced_misses(ops, (131, 130, 330), False)
    finally:
        ops.digits._block = block


def not_finite_misses(ops: Any) -> int:
    """How many numbers of a row with an infinity and of one with a NaN come out as numbers."""
    x = np.ones((3, 40), np.float32)
    x[0, 3], x[2, 39] = np.inf, np.nan
    layer = sliced_layer(ops, x[1:2], np.zeros(1, np.float32), False)
    y = ops.linear(ops.asarray(x), **layer).get()
    return int(np.isfinite(y[[0, 2]]).sum() + (~np.isfinite(y[1])).sum())


AXPY = r"""
template <class T> __global__ void axpy(const T* x, T* y, int n, float a) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i];
}
template <class T> __global__ void beyond(T* y, int n) { y[n + threadIdx.x] = 1; }
template <class T> __global__ void large(T* y) {
  extern __shared__ float s[];
  s[threadIdx.x] = 1;
  y[threadIdx.x] = s[threadIdx.x];
}
template <class T> __global__ void parted(T* y) {
  if (threadIdx.x < 16) __syncthreads();
  else { y[threadIdx.x] = 1;
    __syncthreads(); }
}
"""


def test_planted_in_how_a_kernel_is_launched(cupy: Any) -> None:
    names = [f"{name}<float>" for name in ("axpy", "beyond", "large", "parted")]
    module = cupy.RawModule(code=AXPY, name_expressions=names)
    axpy, beyond, large, parted = map(module.get_function, names)
    x, y, n, a = cupy.asarray(np.ones(100, np.float32)), cupy.empty(100, np.float32), np.int32(100), np.float32(2)
    axpy((4,), (32,), (x, y, n, a))
    assert (y.get() == 2).all()
    wrong = [
        ((x, y, 100, a), (4,), TypeError, "8 bytes"),
        ((x, y, n, 2.0), (4,), TypeError, "8 bytes"),
        ((x, y, n, np.float64(2)), (4,), TypeError, "float64"),
        ((np.ones(100, np.float32), y, n, a), (4,), TypeError, "device"),
        ((cupy.zeros(100), y, n, a), (4,), TypeError, "float64"),
        ((None, y, n, a), (4,), TypeError, "device"),
        ((x, y, n), (4,), TypeError, "4 arguments"),
        ((x[::2], y, np.int32(50), a), (4,), ValueError, "neighbours"),
        ((x, y, n, a), (0,), ValueError, "grid"),
        ((x, y, n, a), (np.int64(4),), ValueError, "grid"),
    ]
    for args, grid, kind, told in wrong:
        with pytest.raises(kind, match=told):
            axpy(grid, (32,), args)
    with pytest.raises(emulator.EmulatorError, match="block size"):
        axpy((1,), (2048,), (x, y, n, a))
    with pytest.raises(MemoryError, match="outside"):
        beyond((1,), (32,), (y, np.int32(90)))
    with pytest.raises(emulator.EmulatorError, match="different __syncthreads"):
        parted((1,), (32,), (y,))
    with pytest.raises(RuntimeError, match="shared"):
        large((1,), (32,), (y,), shared_mem=1 << 16)
    with pytest.raises(TypeError, match="Implicit"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Unsupported"):
        x + np.ones(100, np.float32)
    assert np.isnan(cupy.empty(3, np.float32).get()).all()


def test_planted_in_what_a_graph_keeps(cupy: Any) -> None:
    axpy = cupy.RawModule(code=AXPY, name_expressions=["axpy<float>"]).get_function("axpy<float>")
    x, n, a = cupy.asarray(np.ones(100, np.float32)), np.int32(100), np.float32(2)
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()

    def captured() -> Any:
        with stream:
            stream.begin_capture()
            between, y = cupy.empty(100, np.float32), cupy.empty(100, np.float32)
            axpy((4,), (32,), (x, between, n, a))
            axpy((4,), (32,), (between, y, n, a))
            return stream.end_capture(), y

    graph, y = captured()  # `between` has gone back to the pool that everybody takes from
    with pytest.raises(MemoryError, match="pool"):
        graph.launch()
    with cupy.cuda.using_allocator(pool.malloc):
        graph, y = captured()
    assert np.isnan(y.get()).all()
    graph.launch()
    assert (y.get() == 4).all()
    x.set(np.full(100, 3, np.float32))
    graph.launch()
    assert (y.get() == 12).all()
    del pool
    with pytest.raises(MemoryError, match="pool"):
        graph.launch()
    with stream:
        stream.begin_capture()
        for wrong in (x.get, lambda: x + 1, lambda: x.astype(np.float64), lambda: cupy.asarray(np.ones(3)), stream.synchronize):
            with pytest.raises(RuntimeError, match="capturing"):
                wrong()
        stream.end_capture()
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream.null.begin_capture()


@pytest.mark.parametrize(("right", "wrong"), [
    ("((w, of, K, N), (x, of, K, M), (y, out, N, M))", "((w, of, N, K), (x, of, K, M), (y, out, N, M))"),
    ("(TRANSA, 1), (TRANSB, 0)", "(TRANSA, 0), (TRANSB, 0)"),
    ("(residual, 1.0)", "(residual, 0.0)"),
    ('"float16": 2', '"float16": 14'),
    ("EPILOGUE_BIAS, EPILOGUE_GELU_BIAS = 4, 36", "EPILOGUE_BIAS, EPILOGUE_GELU_BIAS = 4, 32"),
    ('TYPES = {"float32": 0', 'TYPES = {"float32": 14'),
    ("COMPUTE_32F_FAST_TF32 = 68, 77", "COMPUTE_32F_FAST_TF32 = 77, 68"),
])  # fmt: skip
def test_planted_in_the_wrapper_of_cublaslt(ops: Any, right: str, wrong: str) -> None:
    path = Path(ops.cublaslt.__file__)
    error = {}
    for name, code in (("sound", path.read_text()), ("planted", path.read_text().replace(right, wrong))):
        assert (name == "sound") or wrong in code
        spec = importlib.util.spec_from_loader(f"tinyroberta.backends.cupy.{name}", None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # ctypes and NamedTuple look there
        exec(compile(code, str(path), "exec"), module.__dict__)
        library = cublaslt.Library()
        module.library = lambda library=library: library
        random = np.random.default_rng()
        x, w, residual = (random.standard_normal(s).astype(np.float32) for s in ((12, 16), (20, 16), (12, 20)))
        bias = random.standard_normal(20).astype(np.float32)
        uncut = [ops.asarray(a) for a in (x, w, bias)]
        cut_off = x.astype(np.float64) @ w.T + bias
        x, w = (a.astype(np.float16).astype(np.float32) for a in (x, w))
        on = [ops.asarray(a) for a in (x, w, bias)]
        halves = [a.astype(np.float16) for a in on[:2]]
        exact = x.astype(np.float64) @ w.T + bias
        try:
            plain = relative(host(module.linear(*on, np.dtype(np.float32), residual=ops.asarray(residual))), exact + residual)
            bent = relative(host(module.linear(*on, np.dtype(np.float32), gelu=True)), definition.gelu_tanh(exact))
            half = relative(host(module.linear(*halves, on[2], np.dtype(np.float32))), exact)
            fine = relative(host(module.linear(*uncut, np.dtype(np.float32))), cut_off)
            tf32 = relative(host(module.linear(*uncut, np.dtype(np.float32), tf32=True)), cut_off)
            error[name] = max(plain, bent, half, fine if 1e-5 < tf32 < 1e-3 else math.inf)
        except Error:
            error[name] = math.inf
        del sys.modules[spec.name]
    assert error["sound"] < 1e-6
    assert not error["planted"] < 1e-5


def test_threads_that_share_a_plan_have_their_own_bias(ops: Any) -> None:
    library = cublaslt.Library()
    both_set = threading.Barrier(2)

    class Interleaved:
        """Two threads that both tell their bias before either multiplies, where that can happen."""

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def cublasLtMatmulDescSetAttribute(self, description: Any, attribute: int, *args: Any) -> int:
            status = int(library.cublasLtMatmulDescSetAttribute(description, attribute, *args))
            if attribute == ops.cublaslt.BIAS_POINTER:
                with contextlib.suppress(threading.BrokenBarrierError):
                    both_set.wait(0.3)
            return status

    ops.cublaslt.library = Interleaved
    x, w = ops.cp.zeros((24, 40), np.float32), ops.cp.zeros((28, 40), np.float32)
    biases = [ops.asarray(np.full(28, value)) for value in (1.0, 2.0)]
    with ThreadPoolExecutor(2) as threads:
        found = [y.get() for y in threads.map(lambda bias: ops.cublaslt.linear(x, w, bias, ops.launch.FLOAT), biases)]
    assert [(y.min(), y.max()) for y in found] == [(1, 1), (2, 2)]


def test_a_product_that_the_library_cannot_do_is_told(ops: Any) -> None:
    library = cublaslt.Library()

    class Unable:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def cublasLtMatmulAlgoGetHeuristic(self, *args: Any) -> int:
            status = int(library.cublasLtMatmulAlgoGetHeuristic(*args))
            for algorithm in args[-2]:
                algorithm.state = 15  # found, and not supported
            return status

    ops.cublaslt.library = Unable
    x, w = ops.cp.zeros((20, 40), np.float32), ops.cp.zeros((36, 40), np.float32)
    with pytest.raises(Error, match=r"no algorithm for \(20, 40\) by \(40, 36\)"):
        ops.cublaslt.linear(x, w, ops.asarray(np.zeros(36)), ops.launch.FLOAT)


def test_a_plan_that_leaves_the_cache_gives_its_descriptors_back(ops: Any) -> None:
    use(ops, "cuBLASLt")
    library = ops.cublaslt.library().library
    x, w, bias = ops.cp.zeros((20, 40), np.float32), ops.cp.zeros((36, 40), np.float32), ops.asarray(np.zeros(36))
    ops.cublaslt._plan.cache_clear()
    before = library.alive_count()
    with ops.cp.cuda.Stream(non_blocking=True) as stream:
        room = ops.cp.cuda.MemoryPool()
        with ops.cp.cuda.using_allocator(room.malloc):
            stream.begin_capture()
            y = ops.cublaslt.linear(x, w, bias, ops.launch.FLOAT)
            graph = stream.end_capture()
    assert library.alive_count() == before + 4
    ops.cublaslt._plan.cache_clear()
    assert library.alive_count() == before
    graph.launch()  # what was recorded needs them no more
    assert (y.get() == 0).all()
    with pytest.raises(Error):
        ops.cublaslt._plan(0, 20, 36, 42, ops.launch.FLOAT, ops.launch.FLOAT, False, False)  # rows of 168 bytes
    assert library.alive_count() == before


# Sanitizers: g++'s, on the emulated kernels, in a process of their own.


@pytest.mark.parametrize("sanitizer", ["undefined", "address"])
def test_every_kernel_is_clean_under(sanitizer: str) -> None:
    done = sanitized(sanitizer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("clean\n")


@pytest.mark.parametrize(("sanitizer", "told"), [("undefined", "runtime error"), ("address", "AddressSanitizer")])
def test_planted_what_a_sanitizer_sees(sanitizer: str, told: str) -> None:
    done = sanitized(sanitizer, "planted")
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def sanitized(sanitizer: str, *more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0", "PYTHONPATH": str(HERE)}
    if sanitizer == "address":
        preload = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment["LD_PRELOAD"] = preload.stdout.strip()
    command = [sys.executable, "-m", "cuda_on_cpu.sanitize", sanitizer, *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# The benchmark, to its end, on a model small enough for the stand-in.


def test_the_benchmark_runs_to_its_end(ops: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(ops, "cuBLASLt")
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", HERE.parent / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    sizes = {"tiny": dataclasses.replace(CONFIG, initializer_range=0.02)}
    cases = [benchmark.Case("tiny", (17,) * 2), benchmark.Case("tiny", (8, 3, 20))]
    path = benchmark.main(cases, sizes, results=tmp_path, repeats=2)
    printed = capsys.readouterr().out
    assert "stand-in" in path.name
    text = path.read_text()
    for way in benchmark.WAYS:
        assert f"checks: {way}: " in printed
        assert sum(f"| {way} |" in line for line in text.splitlines()) == 2
    assert 'ROUTE = "' in text
    assert "floor" in text


def test_ctypes_sees_the_structures_the_library_has(ops: Any) -> None:
    assert ctypes.sizeof(ops.cublaslt.Heuristic) == 64 + 8 + 4 + 4 + 16

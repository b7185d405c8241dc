"""backends/numba: every op against float64 on odd shapes and every path, sliced products to the bit, equal bits in any batch."""

import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from models_for_tests import TOLERANCE, dense, flatten, new_model, relative_error, sliced_product, worst
from test_golden import CASES, FOLDER, call, past_of
from test_numpy_backend import exact_activation, exact_attention

import tinyroberta
import tinyroberta.cli
from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.backends import PRECISIONS, Sequences, Settings, bitwise
from tinyroberta.backends import numpy as reference

pytest.importorskip("tinyroberta.backends.numba")
from tinyroberta.backends import numba as ops
from tinyroberta.backends.numba import activations, compiled, norm, paths, recordings, threads
from tinyroberta.backends.numba.attention import bf16 as attention_bf16
from tinyroberta.backends.numba.attention import float32 as attention_float32
from tinyroberta.backends.numba.cutting import TOP_2, TOP_3, pack_weights
from tinyroberta.backends.numba.machine import lanes
from tinyroberta.backends.numba.operands import DIGITS, ROUNDED, THREE_DIGITS, TWO_DIGITS, Operand
from tinyroberta.backends.numba.products import dots, levels, outputs

UNIT = 2.0**-24
TOKENS = (1, 7, 33, 129)
WIDTHS = ((1, 1), (5, 33), (65, 20), (3000, 70))  # K, O
PATHS = tuple(path for path in paths.PATHS if paths.reason_against(path) is None)
ERRORS = {"highest": 6e-7, "high": 2e-4, "medium": 5e-3}
CUTTERS = tuple(unit for path, unit in (("amx", "tiles"), ("vnni", "dots")) if path in PATHS)
cutting = pytest.mark.skipif(not CUTTERS, reason="no AMX and no VNNI here")


def reached(precision: str, path: str) -> str:
    """The precision at which a path does a precision's products."""
    unit, precision = levels.unit_of(path, precision)
    return precision if unit in levels.UNITS else "highest"


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every path that this machine can run, forced."""
    monkeypatch.setenv("TINYROBERTA_CPU", request.param)
    return str(request.param)


def prepared(weight: np.ndarray, precision: str = "highest", second: bool = False) -> Any:
    """A dense layer's weight as this backend holds it."""
    layer = dense(weight, after_activation=second)
    return ops.prepare({"layer": layer}, Settings(matmul_precision=precision))["layer"]["weight"]


@pytest.mark.parametrize("cut", [(3, 3), (3, 4), (2, 2), (2, 3)])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("unit", CUTTERS)
def test_units_equal_the_definition_of_sliced_products(unit: str, tokens: int, cut: tuple[int, int]) -> None:
    random = np.random.default_rng()
    for into, out in (*WIDTHS, (64, 64)):
        x, weight = (random.standard_normal(s, dtype=np.float32) for s in ((tokens, into), (out, into)))
        x *= np.float32(10.0) ** random.integers(-20, 20, (tokens, 1)).astype(np.float32)
        x[0] = 0
        x[tokens // 2, 0] *= 100  # an outlier: one diagonal more for this row alone
        operand = {2: TWO_DIGITS, 3: THREE_DIGITS}[cut[0]]
        held = pack_weights([weight], operand)
        y = levels.cut_product(unit, norm.cut(x, operand), *held, cut[1], out, None, None, None)
        np.testing.assert_array_equal(y, sliced_product(x, weight, *cut))


@pytest.mark.skipif("vnni" not in PATHS, reason="no dot products of bytes here")
def test_one_slice_may_be_digits() -> None:
    """Which numbers an operand has does not follow from how many slices it has."""
    njit = pytest.importorskip("numba").njit

    compiled.keep_promises()
    block = dots.dot_block(4, Operand(DIGITS, 1, 64), 1).made()

    @njit
    def multiply(sums, left, right, steps):
        block(sums, left, right, steps, right, 0)

    random, steps, sums = np.random.default_rng(), 3, np.zeros((4, 32), np.int32)
    rows, panel = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((steps, 16, 64), (steps, 2, 16, 16, 4)))
    multiply(sums.ctypes.data, rows.ctypes.data, panel.ctypes.data, steps)
    weight = panel.transpose(1, 3, 0, 2, 4).reshape(32, -1).astype(np.int32)
    np.testing.assert_array_equal(sums, rows.swapaxes(0, 1).reshape(16, -1)[:4].astype(np.int32) @ weight.T)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_are_not_finite_are_theirs_alone(precision: str, path: str) -> None:
    random = np.random.default_rng()
    x, weight = (random.standard_normal(s, dtype=np.float32) for s in ((20, 70), (40, 70)))
    held = prepared(weight, precision)
    clean = ops.linear(x, held, np.zeros(40, np.float32))
    x[3, 5], x[17, 0] = np.nan, -np.inf
    y = ops.linear(x, held, np.zeros(40, np.float32))
    assert not np.isfinite(y[[3, 17]]).any()
    unit, at = levels.unit_of(path, precision)
    if unit in levels.UNITS and at != "medium":
        assert np.isnan(y[[3, 17]]).all()
    kept = np.delete(np.arange(20), [3, 17])
    np.testing.assert_array_equal(y[kept], clean[kept])


@pytest.mark.usefixtures("path")
def test_no_rows_at_all() -> None:
    nothing = np.zeros((0, 20), np.float32)
    held, bias = prepared(np.ones((33, 20), np.float32)), np.ones(33, np.float32)
    assert ops.linear(nothing, held, bias, activation="gelu").shape == (0, 33)
    assert ops.layer_norm(nothing, bias[:20], bias[:20], 1e-5).shape == (0, 20)
    assert ops.activation(nothing, "gelu").shape == (0, 20)


@cutting
def test_some_of_the_cut_rows() -> None:
    x = np.random.default_rng().standard_normal((37, 70), dtype=np.float32)
    some, apart = norm.cut(x, THREE_DIGITS)[slice(5, 30)], norm.cut(x[5:30], THREE_DIGITS)
    np.testing.assert_array_equal(some.blocks, apart.blocks)
    np.testing.assert_array_equal(some.scales[:25], apart.scales[:25])


@cutting
@pytest.mark.parametrize("operand", [ROUNDED, TWO_DIGITS, THREE_DIGITS], ids=["bf16", "two", "three"])
def test_cut_rows_are_put_together_again(operand: Operand) -> None:
    x = np.random.default_rng().standard_normal((21, 70), dtype=np.float32)
    found, exact = ops.to_numpy(norm.cut(x, operand)), x.astype(float)
    bound = np.abs(exact) * 2.0**-8  # half a unit of bf16
    if operand != ROUNDED:  # half a step of a row's digits; float32's own roundings, of x gain, of 1 / gain and of what comes out
        step = np.abs(exact).max(1, keepdims=True) / float({TWO_DIGITS: TOP_2, THREE_DIGITS: TOP_3}[operand])
        bound = step / 2 + 4 * UNIT * (np.abs(exact) + step)
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear(tokens: int, precision: str, path: str) -> None:
    random = np.random.default_rng()
    # what one factor's rounding does to a product: a float32 unit; a step of a row's digits (the largest is some 4 typical);
    # half a unit of bf16
    steps = {"highest": 2.0**-21, "high": 2.0**-12.5, "medium": 2.0**-8}
    for (into, out), activation in zip(WIDTHS, (None, "relu", None, "tanh"), strict=True):
        x, weight, bias, residual = (
            random.standard_normal(s, dtype=np.float32) for s in ((tokens, into), (out, into), out, (tokens, out))
        )
        exact = x.astype(float) @ weight.T.astype(float) + bias
        exact = {None: exact, "relu": np.maximum(exact, 0), "tanh": np.tanh(exact)}[activation] + residual
        for second in (False, True):
            held = prepared(weight, precision, second)
            y = ops.linear(x, held, bias, activation=activation, residual=residual)
            assert y.dtype == np.float32
            unit, at = levels.unit_of(path, precision)
            step = steps[at] if unit in levels.UNITS else into * UNIT
            largest = np.abs(x).max(1, keepdims=True) * np.abs(weight).max(1)
            bound = 2 * step * (largest * math.sqrt(into) + 1) + (into + 8) * UNIT * (np.abs(x) @ np.abs(weight).T + 3)
            assert (np.abs(y - exact) <= bound).all()
            alone = [
                ops.linear(x[i : i + 1], held, bias, activation=activation, residual=residual[i : i + 1])
                for i in range(tokens)[:3]
            ]
            if path != "blas":
                np.testing.assert_array_equal(np.concatenate(alone), y[:3])


@pytest.mark.skipif("fma" not in PATHS, reason="no multiply-adds here")
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_weights_that_are_halves_take_half_the_bytes_and_give_the_same_bits(
    tokens: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYROBERTA_CPU", "fma")
    random = np.random.default_rng()
    for into, out in WIDTHS:
        weight = random.standard_normal((out, into)).astype(kind).astype(np.float32)
        weight[0, 0] = {"bfloat16": 2.0**-130, "float16": 2.0**-24}[kind]  # what neither kind holds of the other's
        weight[-1, -1] = {"bfloat16": 2.0**100, "float16": 1 + 2.0**-10}[kind]
        x, bias = (random.standard_normal(shape, dtype=np.float32) for shape in ((tokens, into), out))
        held, one_more = prepared(weight), prepared(np.vstack([weight, np.full((1, into), np.float32(0.1))]))
        assert held.panels.dtype == {"bfloat16": np.uint16, "float16": np.float16}[kind]
        assert one_more.panels.dtype == np.float32
        whole = ops.linear(x, one_more, np.append(bias, np.float32(0)))
        np.testing.assert_array_equal(ops.linear(x, held, bias), whole[:, :-1])


@pytest.mark.usefixtures("path")
def test_linear_of_a_very_wide_row(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng()
    monkeypatch.setattr(bitwise, "DEEPEST", 128)
    x, weight, bias, residual = (random.standard_normal(s, dtype=np.float32) for s in ((7, 300), (33, 300), 33, (7, 33)))
    y = ops.linear(x, prepared(weight), bias, activation="relu", residual=residual)
    exact = np.maximum(x.astype(float) @ weight.T.astype(float) + bias, 0) + residual
    assert relative_error(y, exact) < 1e-6


@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm(tokens: int) -> None:
    random = np.random.default_rng()
    for width in (1, 5, 65, 768, 3000):
        x, weight, bias = (random.standard_normal(shape, dtype=np.float32) for shape in ((tokens, width), width, width))
        x += 3
        exact = reference.layer_norm(*(a.astype(float) for a in (x, weight, bias)), eps=1e-5)
        # two means of `width` terms in at least 8 lanes, and six roundings; the mean of 3 errs by its own units
        bound = (width / 8 + 12) * 4 * UNIT
        y = ops.layer_norm(x, weight, bias, 1e-5)
        assert y.dtype == np.float32
        assert np.linalg.norm(y - exact) <= bound * np.linalg.norm(exact) + (1e-3 if width == 1 else 0)
        np.testing.assert_array_equal(ops.layer_norm(x[-1:], weight, bias, 1e-5), y[-1:])
        if CUTTERS:
            fused, apart = norm.cut(x, THREE_DIGITS, weight, bias, 1e-5), norm.cut(y, THREE_DIGITS)
            np.testing.assert_array_equal(fused.blocks, apart.blocks)
            np.testing.assert_array_equal(fused.scales, apart.scales)


BF16 = np.dtype(ml_dtypes.bfloat16)


def attention_case(lengths: tuple[int, ...], causal: bool, extras: bool, heads: int, d: int, dtype: Any) -> Any:
    """Queries, keys and values side by side, whose they are, and a bias (of one sequence) and a head mask where asked."""
    random, D = np.random.default_rng(), heads * d
    qkv = random.standard_normal((sum(lengths), 3 * D)).astype(dtype)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    given = {}
    if extras and len(lengths) == 1:
        given["bias"] = random.standard_normal((1, heads, lengths[0], lengths[0]), dtype=np.float32)
    if extras:
        given["head_mask"] = random.random((1, heads, 1, 1), dtype=np.float32)
    sequences = Sequences(starts, starts[:-1], np.array(lengths, np.int32), causal)
    return qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :], sequences, given


def alone_and_together(q: Any, k: Any, v: Any, sequences: Sequences, heads: int, given: Any, together: np.ndarray) -> None:
    """Each sequence by itself, on one thread, has the bits that it has among the others."""
    for start, length in zip(sequences.key_start, sequences.key_length, strict=True):
        rows, one = slice(start, start + length), np.array([0, length], np.int32)
        of_one = Sequences(one, one[:1], one[1:], sequences.causal)
        with threads.limited(1):
            alone, _ = ops.attention(q[rows], k[rows], v[rows], of_one, heads, **given)
        np.testing.assert_array_equal(ops.to_numpy(alone), together[rows])


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 33), (129, 40)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.usefixtures("path")
def test_attention(lengths: tuple[int, ...], causal: bool, extras: bool) -> None:
    for heads, d in ((3, 5), (2, 16), (5, 40), (2, 48), (1, 64)):
        q, k, v, sequences, given = attention_case(lengths, causal, extras, heads, d, np.dtype(np.float32))
        double = {name: x.astype(float) for name, x in given.items()}
        exact, p = reference.attention(*(x.astype(float) for x in (q, k, v)), sequences, heads, probs=True, **double)
        single, single_p = reference.attention(q, k, v, sequences, heads, probs=True, **given)  # rounded as often as ours
        out, none = ops.attention(q, k, v, sequences, heads, **given)
        again, probabilities = ops.attention(q, k, v, sequences, heads, probs=True, **given)
        assert none is None
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, again)
        assert relative_error(out, exact) < 2 * relative_error(single, exact) + 4 * UNIT
        for found, theirs, expected in zip(probabilities, single_p, p, strict=True):
            assert relative_error(found, expected) < 2 * relative_error(theirs, expected) + 4 * UNIT
            if causal:
                assert not np.triu(found, 1).any()
        alone_and_together(q, k, v, sequences, heads, given, out)


@pytest.fixture(params=CUTTERS)
def bf16_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every path here whose attention multiplies bf16, forced."""
    path = {"tiles": "amx", "dots": "vnni"}[request.param]
    if path == "vnni" and not paths.BF16_DOTS:
        pytest.skip("no dot products of bf16 here")
    monkeypatch.setenv("TINYROBERTA_CPU", path)
    return path


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 33), (129, 40)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.usefixtures("bf16_path")
def test_attention_of_bf16(lengths: tuple[int, ...], causal: bool, extras: bool) -> None:
    for heads, d in ((2, 16), (3, 48), (2, 64)):
        q, k, v, sequences, given = attention_case(lengths, causal, extras, heads, d, BF16)
        double = {name: x.astype(float) for name, x in given.items()}
        exact, p = reference.attention(*(x.astype(float) for x in (q, k, v)), sequences, heads, probs=True, **double)
        largest, _ = reference.attention(*(x.astype(float) for x in (q, k, np.abs(v))), sequences, heads, **double)
        out, none = ops.attention(q, k, v, sequences, heads, **given)
        again, probabilities = ops.attention(q, k, v, sequences, heads, probs=True, **given)
        assert none is None
        found = ops.to_numpy(out)
        np.testing.assert_array_equal(found, ops.to_numpy(again))
        # q / sqrt(d) is rounded where that is no power of two: half a unit of bf16, of each q k, moves a score by `moved` at
        # most; float32 moves it by so many units of the same sum. p moves by twice as much of p, its sum included
        sums = np.einsum("qhd,khd->hqk", *(np.abs(x.astype(float)).reshape(-1, heads, d) for x in (q, k))).max() / math.sqrt(d)
        moved = sums * ((0 if math.sqrt(d) in (4, 8) else 2.0**-8) + (d + 8) * UNIT)
        of_p = 2 * math.expm1(moved) + (max(lengths) + 8) * UNIT
        assert (np.abs(found - exact) <= (of_p + 2.0**-8) * largest * 1.01 + 2.0**-8 * 1.01 * np.abs(exact)).all()
        for x, expected in zip(probabilities, p, strict=True):
            assert (np.abs(x - expected) <= of_p * expected + 1e-37).all()
            if causal:
                assert not np.triu(x, 1).any()
        alone_and_together(q, k, v, sequences, heads, given, found)


@pytest.mark.usefixtures("bf16_path")
def test_attention_of_bf16_reads_a_cache_as_it_reads_packed_rows() -> None:
    random = np.random.default_rng()
    B, S, past, heads, d = 3, 4, 46, 2, 16
    q = random.standard_normal((B * S, heads * d)).astype(BF16)
    keys, values = random.standard_normal((2, B, heads, past + S + 9, d)).astype(BF16)
    keys[:, :, past + S :] = values[:, :, past + S :] = np.nan  # not in use
    starts, length = np.arange(B + 1, dtype=np.int32), np.full(B, past + S, np.int32)
    in_cache, in_rows = (Sequences(starts * S, first, length, True) for first in (starts[:-1] * 0, starts[:-1] * (past + S)))
    cached, _ = ops.attention(q, keys, values, in_cache, heads)
    rows = [x[:, :, : past + S].transpose(0, 2, 1, 3).reshape(-1, heads * d) for x in (keys, values)]
    packed, _ = ops.attention(q, *rows, in_rows, heads)
    np.testing.assert_array_equal(ops.to_numpy(cached), ops.to_numpy(packed))
    exact, _ = reference.attention(*(x.astype(float) for x in (q, *rows)), in_rows, heads)
    assert relative_error(ops.to_numpy(cached), exact) < 2.0**-8  # what one rounding to bf16 does at most


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.usefixtures("bf16_path")
def test_what_is_not_finite_stays_in_its_sequence_and_head(dtype: Any) -> None:
    random = np.random.default_rng()
    q, k, v = random.standard_normal((3, 80, 48)).astype(dtype)
    starts = np.array([0, 37, 80], np.int32)
    given = Sequences(starts, starts[:-1], np.diff(starts), False), 3
    clean = ops.to_numpy(ops.attention(q, k, v, *given)[0])
    k[3, 5], v[40, 20], q[60, 40] = np.nan, np.inf, np.nan
    found = ops.to_numpy(ops.attention(q, k, v, *given)[0])
    assert np.isnan(found[:37, :16]).all()
    assert not np.isfinite(found[37:, 20]).any()
    assert np.isnan(found[60, 32:]).all()
    touched = np.zeros(found.shape, bool)
    touched[:37, :16] = touched[37:, 20] = touched[60, 32:] = True
    np.testing.assert_array_equal(found[~touched], clean[~touched])


@pytest.mark.usefixtures("bf16_path")
@pytest.mark.parametrize("tokens", TOKENS)
def test_products_hand_on_bf16(tokens: int) -> None:
    random = np.random.default_rng()
    for (into, out), name in zip(WIDTHS, ("gelu", None, "sigmoid", "gelu"), strict=True):
        x, weight, bias = (random.standard_normal(s, dtype=np.float32) for s in ((tokens, into), (out, into), out))
        x[-1, 0] = np.nan
        held = prepared(weight, "medium")
        if name == "gelu":  # the rough one, whose bound test_the_stated_bounds_of_the_polynomials holds
            exact = activations.activation(ops.linear(x, held, bias), activations.ROUGH_GELU)
        else:
            exact = ops.linear(x, held, bias, activation=name)
        whole = ops.linear(x, held._replace(gives=outputs.GIVES_BF16), bias, activation=name)
        assert whole.dtype == BF16
        np.testing.assert_array_equal(whole.astype(np.float32), exact.astype(BF16).astype(np.float32))
        cut = ops.linear(x, held._replace(gives=outputs.GIVES_BLOCKS), bias, activation=name)
        np.testing.assert_array_equal(ops.to_numpy(cut), whole.astype(np.float32))
        if name != "sigmoid":  # what stands beside the last column meets zeros only
            np.testing.assert_array_equal(
                cut[: tokens // 2].blocks, norm.cut(whole[: tokens // 2].astype(np.float32), ROUNDED).blocks
            )


def test_attention_against_scores_one_at_a_time() -> None:
    q, k, v = np.random.default_rng().standard_normal((3, 6, 15), dtype=np.float32)
    one = np.array([0, 6], np.int32)
    out, _ = ops.attention(q, k, v, Sequences(one, one[:1], one[1:], True), 3)
    exact, _ = exact_attention(*(x.astype(float) for x in (q, k, v)), 3, True, np.zeros((3, 6, 6)), np.ones(3))
    assert relative_error(out, exact) < 1e-6


@pytest.mark.parametrize("d", [5, 16])
@pytest.mark.usefixtures("path")
def test_attention_reads_a_cache_as_it_reads_packed_rows(d: int) -> None:
    random = np.random.default_rng()
    B, S, past, heads = 3, 4, 6, 2
    q = random.standard_normal((B * S, heads * d), dtype=np.float32)
    keys, values = random.standard_normal((2, B, heads, past + S + 9, d), dtype=np.float32)
    keys[:, :, past + S :] = values[:, :, past + S :] = np.nan  # not in use
    starts, length = np.arange(B + 1, dtype=np.int32), np.full(B, past + S, np.int32)
    cached, _ = ops.attention(q, keys, values, Sequences(starts * S, starts[:-1] * 0, length, True), heads)
    rows = [x[:, :, : past + S].transpose(0, 2, 1, 3).reshape(-1, heads * d) for x in (keys, values)]
    packed, _ = ops.attention(q, *rows, Sequences(starts * S, starts[:-1] * (past + S), length, True), heads)
    np.testing.assert_array_equal(cached, packed)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activation(name: str) -> None:
    random = np.random.default_rng()
    x = np.concatenate([random.standard_normal(500) * 4, random.uniform(-1e-3, 1e-3, 50), [0.0, -0.0, 30, -30]])
    x = x.astype(np.float32)
    y = ops.activation(x, name)
    exact = np.array([exact_activation(name, value) for value in x.tolist()])
    assert y.dtype == np.float32
    assert np.all(np.abs(y - exact) <= 40 * UNIT * np.maximum(np.abs(exact), 0.05) + 8 * UNIT)
    assert np.isfinite(ops.activation(np.array([-1e4, 1e4, -200.0, 200.0], np.float32), name)).all()
    assert np.isnan(ops.activation(np.array([np.nan], np.float32), name)).all()
    for length in (1, 15, 17, 5000):
        np.testing.assert_array_equal(ops.activation(x[:length], name), y[:length])


def test_the_stated_bounds_of_the_polynomials() -> None:
    njit = pytest.importorskip("numba").njit

    x = np.concatenate([np.linspace(-87, 87, 400_000), np.geomspace(1e-30, 80, 100_000)]).astype(np.float32)

    compiled.keep_promises()

    functions = [bitwise.exp, bitwise.erf, bitwise.tanh]
    functions += [attention_float32.exp_fused, activations.rough_gelu, attention_bf16.rough_exp]
    apply = lanes.lanes_of(functions).made()

    @njit
    def each(address, count, kind):
        apply(address, count, kind)

    def values(x):
        y = np.tile(x, (len(functions), 1))
        for kind, row in enumerate(y):
            each(row.ctypes.data, len(x), kind)
        return y

    exp, erf, tanh, fused, gelu, rough = values(x).astype(float)
    exact = x.astype(float)
    assert np.max(np.abs(exp / np.exp(exact) - 1)) < 1.5e-7
    assert np.max(np.abs(fused / np.exp(exact) - 1)[exact <= 0]) < 1.5e-7
    assert np.max(np.abs(rough / np.exp(exact) - 1)[exact <= 0]) < 1.5e-6
    assert np.max(np.abs(erf - np.array([math.erf(value) for value in exact.tolist()]))) < 2.5e-7
    filled = exact != 0
    assert np.max(np.abs(tanh[filled] / np.tanh(exact[filled]) - 1)) < 5e-7
    # Phi's polynomial is as good as its clipping: off by what lies beyond the clip, Phi(-4.2), a few float32 roundings more
    phi = 0.5 * np.array([math.erfc(-value / 2**0.5) for value in exact.tolist()])
    side, within = float(activations.SIDE), np.minimum(np.abs(exact), activations.SIDE)
    assert np.all(np.abs(gelu - exact * phi) <= 0.5 * math.erfc(side / 2**0.5) * within * 1.01 + 4 * UNIT * np.abs(exact))
    assert (values(np.repeat(np.array([-np.inf, -104], np.float32), 8))[[0, 3, 5]] == 0).all()


def test_embed() -> None:
    random = np.random.default_rng()
    word, position, segment = (random.standard_normal((n, 21), dtype=np.float32) for n in (50, 40, 2))
    ids, positions, types = random.integers(0, 50, 37), random.integers(0, 40, 37), random.integers(0, 2, 37)
    for where in (positions, None):
        for what in (ids, word[ids]):
            expected = reference.embed(what, where, types, word, position, segment)
            np.testing.assert_array_equal(ops.embed(what, where, types, word, position, segment), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_word_embeddings_of_16_bits_are_left_where_they_are(dtype: Any) -> None:
    tensors = {name: x.astype(dtype) for name, x in new_model(tinyroberta.RobertaPreLayerNormModel, CONFIG).tensors.items()}
    narrow = tinyroberta.RobertaPreLayerNormModel(CONFIG, tensors, backend="cpu")
    assert narrow.weights["embeddings"]["word_embeddings"]["weight"] is tensors["embeddings.word_embeddings.weight"]
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    wide, (ids, mask) = tinyroberta.RobertaPreLayerNormModel(CONFIG, tensors, backend="cpu"), texts()
    np.testing.assert_array_equal(narrow(ids, mask).last_hidden_state, wide(ids, mask).last_hidden_state)


@cache
def golden(folder: str, changes: str) -> Any:
    config = RobertaPreLayerNormConfig.from_pretrained(FOLDER / folder)
    config = dataclasses.replace(config, **json.loads(changes))
    assert config.architectures
    cls = tinyroberta.models.CLASSES[config.architectures[0]]
    return cls.from_pretrained(FOLDER / folder, config=config, backend="cpu")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_golden(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_golden.model_of", lambda folder, _, changes: golden(folder, changes))
    output = call(case, "float32", past_of(case, "float32"), padding="compute")
    error, field = worst(flatten(output.items()), case.outputs)
    assert error <= TOLERANCE["float32"], field


CONFIG = RobertaPreLayerNormConfig(
    vocab_size=300, hidden_size=72, num_hidden_layers=2, num_attention_heads=3, intermediate_size=150, max_position_embeddings=90,
    type_vocab_size=1,
)  # fmt: skip


def texts() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids, lengths = random.integers(3, 300, (7, 70)), np.array([70, 1, 33, 17, 50, 16, 2])
    return ids, (np.arange(70) < lengths[:, None]).astype(int)


def test_a_count_of_slices_that_no_kernel_writes_is_refused() -> None:
    with pytest.raises(TypeError, match="no row is written"):
        pack_weights([np.ones((3, 5), np.float32)], Operand(DIGITS, 4, 64))


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("outliers", ["in norm gains", "in what the layers add to"])
@pytest.mark.usefixtures("path")
def test_outlying_channels_cost_at_most_twice_numpys_error(outliers: str, reproducible: bool) -> None:
    cls, random = tinyroberta.RobertaPreLayerNormModel, np.random.default_rng()
    config = dataclasses.replace(CONFIG, hidden_size=384, num_attention_heads=6, intermediate_size=768, num_hidden_layers=3)
    gains, (ids, mask) = outliers == "in norm gains", texts()
    tensors = dict(new_model(cls, config, seed=int(random.integers(1000))).tensors)
    for name, x in tensors.items():
        if name.endswith("LayerNorm.weight") and name.startswith("embeddings") != gains:
            tensors[name] = x * np.where(np.arange(384) % (96 if gains else 384) == 7, np.float32(60), np.float32(1))
    exact, single, ours = (
        cls(config, tensors, **given)(ids, mask).last_hidden_state
        for given in ({"dtype": "float64"}, {"backend": "numpy"}, {"backend": "cpu", "reproducible": reproducible})
    )
    assert relative_error(ours, exact) < 2 * relative_error(single, exact)


@pytest.mark.parametrize("width", [24, 48])  # of a head; attention of bf16, or on tiles, wants a multiple of 16
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_has_the_same_bits_alone_in_any_batch_and_order_with_any_threads(precision: str, width: int, path: str) -> None:
    cls = tinyroberta.RobertaPreLayerNormForMaskedLM
    config = dataclasses.replace(CONFIG, hidden_size=3 * width)
    model = new_model(cls, config, backend="cpu", matmul_precision=precision)
    ids, mask = texts()
    whole = model(ids, mask).logits
    exact = new_model(cls, config, dtype="float64")(ids, mask).logits
    assert relative_error(whole, exact) < ERRORS[reached(precision, path)]
    if path == "blas":
        return
    for one in (1, 3):
        single = new_model(cls, config, backend="cpu", matmul_precision=precision, threads=one)
        np.testing.assert_array_equal(single(ids, mask).logits, whole)
    order = np.random.default_rng().permutation(len(ids))
    np.testing.assert_array_equal(model(ids[order], mask[order]).logits, whole[order])
    for b, length in enumerate(mask.sum(1)):
        np.testing.assert_array_equal(model(ids[b : b + 1, :length]).logits[0], whole[b, :length])


@pytest.mark.parametrize("changes", [
    {}, {"chunk_size_feed_forward": 5}, {"position_embedding_type": "relative_key_query"}, {"add_cross_attention": True},
])  # fmt: skip
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_decoder_and_its_cache(precision: str, changes: dict[str, Any], path: str) -> None:
    cls = tinyroberta.RobertaPreLayerNormForCausalLM
    config = dataclasses.replace(CONFIG, hidden_size=96, num_attention_heads=2, is_decoder=True, **changes)
    ours: dict[str, Any] = {"backend": "cpu", "matmul_precision": precision}
    model, exact = (new_model(cls, config, **made) for made in (ours, {"dtype": "float64"}))
    random = np.random.default_rng()
    ids, source = random.integers(3, 300, (3, 40)), random.standard_normal((3, 7, 96))
    given = {"encoder_hidden_states": source} if config.add_cross_attention else {}
    kept = {"output_attentions": True, "head_mask": np.array([[1, 0.5], [0, 1]])}
    most = 2 * ERRORS[reached(precision, path)]  # a small model's
    whole, expected = (m(ids, use_cache=False, **kept, **given) for m in (model, exact))
    assert relative_error(whole.logits, expected.logits) < most
    np.testing.assert_array_equal(model(ids, use_cache=False, head_mask=kept["head_mask"], **given).logits, whole.logits)
    for found, theirs in zip(whole.attentions, expected.attentions, strict=True):
        assert relative_error(found, theirs) < most
    expected = exact(ids, use_cache=False, **given).logits
    first = model(ids[:, :30], **given)
    tuples = tuple(tuple(np.array(x) for x in layer) for layer in first.past_key_values)
    assert {x.dtype for layer in tuples for x in layer} == {np.dtype(np.float32)}
    for past in (tuples, first.past_key_values):
        middle = 35 if config.chunk_size_feed_forward else 31  # whole chunks, or one token
        for start, stop in ((30, middle), (middle, 40)):
            output = model(ids[:, start:stop], past_key_values=past, **given)
            past = output.past_key_values
            assert relative_error(output.logits, expected[:, start:stop]) < most


@pytest.mark.usefixtures("path")
def test_a_feed_forward_too_wide_for_one_product_at_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitwise, "DEEPEST", 128)
    cls, (ids, mask) = tinyroberta.RobertaPreLayerNormModel, texts()
    ours, exact = (
        new_model(cls, dataclasses.replace(CONFIG, hidden_size=96), **given)(ids, mask).last_hidden_state
        for given in ({"backend": "cpu", "matmul_precision": "medium"}, {"dtype": "float64"})
    )
    assert relative_error(ours, exact) < 2 * ERRORS["medium"]


@pytest.mark.usefixtures("path")
def test_outlying_norm_gains_cost_no_accuracy() -> None:
    config = dataclasses.replace(CONFIG, hidden_size=192, intermediate_size=400, add_cross_attention=True, is_decoder=True)
    cls = tinyroberta.RobertaPreLayerNormForCausalLM
    tensors = dict(new_model(cls, config).tensors)
    for name, x in tensors.items():
        if "orm.weight" in name or "orm.bias" in name:
            tensors[name] = np.where(np.arange(len(x)) % 96 == 5, np.float32(60) * x, x)
    ids, mask = texts()
    source = np.random.default_rng(0).standard_normal((7, 5, 192))
    given = {"encoder_hidden_states": source, "use_cache": False}
    exact = cls(config, tensors, dtype="float64")(ids, mask, **given).logits
    single = relative_error(cls(config, tensors, backend="numpy")(ids, mask, **given).logits, exact)
    ours = relative_error(cls(config, tensors, backend="cpu")(ids, mask, **given).logits, exact)
    assert ours < 2 * single + 1e-7


@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_recorded_size_is_played_with_the_bits_that_are_computed(
    precision: str, reproducible: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, ids, mask = np.random.default_rng(), *texts()
    given = [random.permuted(ids * mask, axis=1) for _ in range(5)]
    for width, inner in ((96, 64), (120, 100)):  # NumPy fills what is beside a number of columns that is no multiple of 32
        config = dataclasses.replace(CONFIG, hidden_size=width, intermediate_size=inner)
        settings: Any = {"backend": "cpu", "matmul_precision": precision, "reproducible": reproducible}
        model = new_model(tinyroberta.RobertaPreLayerNormModel, config, **settings)
        found = [model(x, mask).last_hidden_state for x in given]
        held = list(model.weights.recordings.values())
        assert len(held) == 1
        if path in ("amx", "vnni") and width == 96:
            assert isinstance(held[0], recordings.Playable)
        if path == "blas":
            assert held == [recordings.NEVER]
        again = pickle.loads(pickle.dumps(model))
        assert not again.weights.recordings
        with monkeypatch.context() as patch:
            patch.setattr(recordings, "RECORDED_TOKENS", 0)
            for x, played in zip(given, found, strict=True):
                np.testing.assert_array_equal(model(x, mask).last_hidden_state, played)
        other = model(given[0][:1], mask[:1]).last_hidden_state  # another size between
        if path != "blas":  # what BLAS sums in which order is up to the number of rows
            np.testing.assert_array_equal(other[0], found[0][0])
        np.testing.assert_array_equal(model(given[1], mask).last_hidden_state, found[1])


def test_sizes_of_no_more_than_so_many_tokens_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "RECORDED_TOKENS", 12)
    model = new_model(tinyroberta.RobertaPreLayerNormModel, CONFIG, backend="cpu")
    for tokens in (3, 4, 5, 6, 13):
        for _ in range(3):
            model(np.full((1, tokens), 5))
    assert [size[0] for size in model.weights.recordings] == [5, 6]


@pytest.mark.parametrize(("name", "value"), [("layer_norm_eps", 0.5), ("hidden_act", "relu"), ("chunk_size_feed_forward", 5)])
def test_a_recording_is_of_one_configuration(name: str, value: Any) -> None:
    ids, mask = texts()
    model = new_model(tinyroberta.RobertaPreLayerNormModel, CONFIG, backend="cpu")
    before = [model(ids, mask).last_hidden_state for _ in range(4)][-1]
    config, model.config = model.config, dataclasses.replace(model.config, **{name: value})
    fresh = tinyroberta.RobertaPreLayerNormModel(model.config, model.tensors, backend="cpu")
    for _ in range(4):
        np.testing.assert_array_equal(model(ids, mask).last_hidden_state, fresh(ids, mask).last_hidden_state)
    model.config = config
    np.testing.assert_array_equal(model(ids, mask).last_hidden_state, before)


def test_python_threads_may_share_a_model() -> None:
    model = new_model(tinyroberta.RobertaPreLayerNormModel, CONFIG, backend="cpu")
    ids, mask = texts()
    expected, wrong = model(ids, mask).last_hidden_state, []

    def run() -> None:
        wrong.extend(not np.array_equal(model(ids, mask).last_hidden_state, expected) for _ in range(20))

    runners = [threading.Thread(target=run) for _ in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert wrong == [False] * 80


FORKED = """
import os, sys, numpy as np, tinyroberta
config = tinyroberta.RobertaPreLayerNormConfig(vocab_size=30, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=40)
model = tinyroberta.RobertaPreLayerNormModel(config, backend="cpu")
ids = np.arange(3, 30)[None]
before = model(ids).last_hidden_state
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(model(ids).last_hidden_state, before) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(model(ids).last_hidden_state, before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_runs() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120, env=os.environ | {"NUMBA_NUM_THREADS": "2"})


SLEEPERS = """
import os, sys, threading, time
if sys.argv[1] == "pipe" and hasattr(os, "eventfd"):
    del os.eventfd
import numpy as np
from tinyroberta.backends.numba import norm
x = np.ones((4096, 768), np.float32)
norm.layer_norm(x, x[0], x[0], 1e-5)
worker, = (thread.native_id for thread in threading.enumerate() if thread.name == "tinyroberta-1")
spent = lambda: int(open(f"/proc/self/task/{worker}/schedstat").read().split()[0])
def work(rest):
    before = spent()
    for _ in range(30):
        norm.layer_norm(x, x[0], x[0], 1e-5)
        time.sleep(rest)
    return spent() - before
end = time.time() + 60
while work(0.005) < 5e6 and time.time() < end:  # nanoseconds; a busy machine may give it none for a while
    pass
assert time.time() < end, "the worker slept on"
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no /proc here")
@pytest.mark.parametrize("file", ["eventfd", "pipe"])
def test_a_worker_that_sleeps_is_woken(file: str) -> None:
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", SLEEPERS, file], check=True, timeout=120, env=environment)


def test_threads_are_what_the_machine_and_the_user_allow(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert threads.allowed_threads() == 1
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    assert 1 <= threads.allowed_threads() <= (os.cpu_count() or 1)
    assert threads.cgroup_quota(str(tmp_path)) == math.inf
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads.cgroup_quota(str(tmp_path)) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.cgroup_quota(str(tmp_path)) == math.inf
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert threads.cgroup_quota(str(tmp_path)) == 2


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tinyroberta.RobertaPreLayerNormModel
    with pytest.raises(Error, match="float64"):
        model(CONFIG, backend="cpu", dtype="float64")
    with pytest.raises(Error, match="Python function"):
        model(dataclasses.replace(CONFIG, hidden_act=np.tanh), backend="cpu")(np.array([[5]]))
    monkeypatch.setenv("TINYROBERTA_CPU", "abacus")
    with pytest.raises(Error, match="abacus"):
        model(CONFIG, backend="cpu")


def test_a_forced_path_is_described(path: str) -> None:
    lines = paths.describe()
    assert lines[0].startswith(f"matrix products: {path}")
    assert any("threads" in line for line in lines)


def test_info_and_warmup(capsys: pytest.CaptureFixture[str]) -> None:
    assert tinyroberta.cli.main(["info"]) == 0
    assert f"matrix products: {paths.chosen_path()}" in capsys.readouterr().out
    assert tinyroberta.cli.main(["warmup"]) == 0
    assert compiled.lacking() == []

"""reproducible=True: backends/bitwise.py against float64 and exact integers, and every path of numba equal to it, to the bit."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from models_for_tests import TOLERANCE, dense, flatten, new_model, relative_error, sliced_product, worst
from test_golden import CASES, FOLDER, call, past_of
from test_numpy_backend import exact_activation

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.backends import PRECISIONS, Sequences, Settings, bitwise, default_backend, load_backend
from tinyroberta.backends import numpy as reference
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.models import CLASSES

UNIT = 2.0**-24
TOKENS = (1, 7, 33, 129)
WIDTHS = ((1, 1), (5, 33), (65, 20), (768, 40), (3000, 70))  # K, O
COMPILED = default_backend() == "cpu"
compiled = pytest.mark.skipif(not COMPILED, reason="no compiled kernels here")
PATHS: tuple[str, ...] = ()
if COMPILED:
    from tinyroberta.backends.numba import norm, operands, paths
    from tinyroberta.backends.numba.machine import features

    PATHS = tuple(path for path in paths.PATHS if paths.reason_against(path) is None)
    numba = load_backend("cpu", reproducible=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_blas() -> Iterator[None]:
    """Products this small wait for BLAS's threads far longer than they take."""
    if importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, "blas"):
        yield


@pytest.fixture(params=PATHS or [pytest.param("", marks=compiled)])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every path that this machine can run, forced."""
    monkeypatch.setenv("TINYROBERTA_CPU", request.param)
    return str(request.param)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Equal to the sign of a zero; any NaN is as good as any other."""
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    bits = [np.where(np.isnan(x), np.int32(-1), x.view(np.int32)) for x in (found, expected)]
    np.testing.assert_array_equal(*bits)


def assert_same_outputs(found: Any, expected: Any) -> None:
    found, expected = flatten(found.items()), flatten(expected.items())
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_same_bits(found[name], x)


def prepared(ops: Any, weight: np.ndarray, precision: str, second: bool) -> Any:
    """A dense layer's weight as a backend holds it."""
    settings = Settings(matmul_precision=precision, reproducible=True)
    return ops.prepare({"layer": dense(weight, after_activation=second)}, settings)["layer"]["weight"]


# The definition against float64 and integers.


def test_the_stated_bounds_of_the_polynomials() -> None:
    x = np.concatenate([np.linspace(-87, 87, 400_000), np.geomspace(1e-30, 80, 100_000)]).astype(np.float32)
    exact = x.astype(float)
    with np.errstate(all="ignore"):
        exp, erf, tanh = (function(x).astype(float) for function in (bitwise.exp, bitwise.erf, bitwise.tanh))
        assert not bitwise.exp(np.array([-np.inf, -104], np.float32)).any()
    assert np.max(np.abs(exp / np.exp(exact) - 1)) < 1.5e-7
    assert np.max(np.abs(erf - np.array([math.erf(value) for value in exact.tolist()]))) < 2.5e-7
    filled = exact != 0
    assert np.max(np.abs(tanh[filled] / np.tanh(exact[filled]) - 1)) < 5e-7
    x = np.geomspace(1e-30, 1, 100_000).astype(np.float32)
    assert np.max(np.abs(bitwise.log1p(x) / np.log1p(x.astype(float)) - 1)) < 2.5e-7


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activation(name: str) -> None:
    x = np.concatenate([np.linspace(-8, 8, 40_000), np.linspace(-1e-3, 1e-3, 100), [0.0, -0.0, 30, -30]]).astype(np.float32)
    y = bitwise.activation(x, name)
    exact = np.array([exact_activation(name, value) for value in x.tolist()])
    assert np.all(np.abs(y - exact) <= 40 * UNIT * np.maximum(np.abs(exact), 0.05) + 8 * UNIT)
    assert np.isfinite(bitwise.activation(np.array([-1e4, 1e4, -200.0, 200.0], np.float32), name)).all()


@pytest.mark.parametrize("cut", [(3, 3), (3, 4), (2, 2), (2, 3)])
def test_sliced_products_are_exact_sums(cut: tuple[int, int]) -> None:
    random = np.random.default_rng()
    for into, out in WIDTHS:
        x, weight = (random.standard_normal(s, dtype=np.float32) for s in ((7, into), (out, into)))
        x[5] **= 9  # with outliers
        x *= np.float32(10.0) ** random.integers(-20, 20, (7, 1)).astype(np.float32)
        x[0] = 0
        found = bitwise.sliced_product(*bitwise.cut(x, cut[0]), *bitwise.cut(weight, cut[0]), cut[1])
        assert_same_bits(found, sliced_product(x, weight, *cut))


def test_a_row_with_outliers_is_better_for_one_more_diagonal_and_its_neighbours_stay_as_they_are() -> None:
    random = np.random.default_rng()
    x, weight = random.standard_normal((9, 768), dtype=np.float32), random.standard_normal((64, 768), dtype=np.float32)
    x[4, ::96] *= 60
    exact, six = x.astype(float) @ weight.T.astype(float), sliced_product(x, weight, 3, 3, coarse=False)
    found = bitwise.sliced_product(*bitwise.cut(x, 3), *bitwise.cut(weight, 3), 3)
    assert relative_error(found[4], exact[4]) < relative_error(six[4], exact[4]) / 2
    assert_same_bits(np.delete(found, 4, 0), np.delete(six, 4, 0))


def test_the_largest_sums_of_digits_are_exact() -> None:
    top = 127 * 257 - 1
    for K in (bitwise.EXACT, bitwise.EXACT + 1, bitwise.DEEPEST):
        x = np.full((2, K), 128, np.float32) * np.array([[1], [-1]], np.float32)  # the lower digits are -128 and -128 again
        x[:, 0] = top  # so that the gain is 1
        found = bitwise.sliced_product(*bitwise.cut(x, 2), *bitwise.cut(x, 2), 3)
        assert_same_bits(found, sliced_product(x, x, 2, 3))
        np.testing.assert_allclose(found, x.astype(float) @ x.astype(float).T, rtol=4 * UNIT)


@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm(tokens: int) -> None:
    random = np.random.default_rng()
    for width in (2, 5, 65, 768, 3000):
        x, weight, bias = (random.standard_normal(shape, dtype=np.float32) for shape in ((tokens, width), width, width))
        x += np.float32(3)
        exact = reference.layer_norm(*(a.astype(float) for a in (x, weight, bias)), eps=1e-5)
        y = bitwise.layer_norm(x, weight, bias, 1e-5)
        # a sum errs by its number of additions in units of the terms (Higham 2002, 4.2); dividing by a deviation enlarges that
        steps = -(-width // 64) + 6
        deviation = np.sqrt(np.var(x.astype(float), 1, keepdims=True) + 1e-5)
        size = np.abs(x).max(1, keepdims=True) / deviation * np.abs(weight) + np.abs(exact) + np.abs(bias)
        assert (np.abs(y - exact) <= (2 * steps + 8) * UNIT * size).all()


def attention_case(
    lengths: tuple[int, ...], heads: int, d: int, causal: bool, extras: bool
) -> tuple[tuple[np.ndarray, ...], Sequences, dict[str, np.ndarray]]:
    """q, k, v as a product leaves them, whose they are, and masks."""
    random = np.random.default_rng()
    D, T = heads * d, sum(lengths)
    qkv = random.standard_normal((T, 3 * D), dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    sequences = Sequences(starts, starts[:-1], np.array(lengths, np.int32), causal)
    given = {}
    if extras and len(lengths) == 1:
        given["bias"] = random.standard_normal((1, heads, lengths[0], lengths[0]), dtype=np.float32)
        given["bias"][..., : lengths[0] // 2, -1] = np.finfo(np.float32).min
    if extras:
        given["head_mask"] = random.random((1, heads, 1, 1), dtype=np.float32)
    return (qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :]), sequences, given


attentions = [
    pytest.mark.parametrize("lengths", [(1,), (7, 1, 33), (300,), (129, 40)]),
    pytest.mark.parametrize("causal", [False, True]),
    pytest.mark.parametrize("extras", [False, True]),
]


def every_attention(test: Any) -> Any:
    for mark in attentions:
        test = mark(test)
    return test


@every_attention
def test_attention(lengths: tuple[int, ...], causal: bool, extras: bool) -> None:
    for heads, d in ((3, 5), (2, 16), (1, 300)):
        qkv, sequences, given = attention_case(lengths, heads, d, causal, extras)
        double = {name: x.astype(float) for name, x in given.items()}
        exact, p = reference.attention(*(x.astype(float) for x in qkv), sequences, heads, probs=True, **double)
        out, probabilities = bitwise.attention(*qkv, sequences, heads, probs=True, **given)
        tolerance = 4 * (d + 4) * (4 * d + 8) * UNIT  # as in test_numpy_backend.py
        assert relative_error(out, exact) < tolerance
        for found, expected in zip(probabilities, p, strict=True):
            assert relative_error(found, expected) < tolerance


def test_relative_scores() -> None:
    random = np.random.default_rng()
    q, k = (random.standard_normal((2, 3, n, 17), dtype=np.float32) for n in (4, 9))
    vectors = random.standard_normal((4, 9, 17), dtype=np.float32)
    for keys in (None, k):
        exact = reference.relative(*(None if x is None else x.astype(float) for x in (q, keys, vectors)))
        assert np.abs(bitwise.relative(q, keys, vectors) - exact).max() < 17 * 40 * UNIT


# numba, to the bit.


@compiled
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_numba_activations(name: str) -> None:
    random = np.random.default_rng()
    every = (np.arange(512, dtype=np.uint32)[:, None] << 23) + random.integers(0, 2**23, (512, 300), np.uint32)
    x = np.concatenate([every.view(np.float32).ravel(), np.linspace(-20, 20, 200_001, dtype=np.float32)])
    x = np.append(x, np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], np.float32))
    expected = bitwise.activation(x, name)
    assert_same_bits(numba.activation(x, name), expected)
    for length in (1, 15, 17):
        assert_same_bits(numba.activation(x[-length:], name), expected[-length:])


@compiled
@pytest.mark.parametrize("tokens", TOKENS)
def test_numba_layer_norm_and_cut(tokens: int) -> None:
    random = np.random.default_rng()
    for width in (1, 5, 63, 64, 65, 768, 3000):
        x, weight, bias = (random.standard_normal(shape, dtype=np.float32) for shape in ((tokens, width), width, width))
        x *= np.float32(10.0) ** random.integers(-30, 15, (tokens, 1)).astype(np.float32)
        x += random.integers(0, 2, (tokens, 1)).astype(np.float32)
        x[-1] = 0
        y = bitwise.layer_norm(x, weight, bias, 1e-5)
        assert_same_bits(numba.layer_norm(x, weight, bias, 1e-5), y)
        for slices in (2, 3):
            expected, scales = bitwise.cut(y, slices)
            operand = operands.Operand(operands.DIGITS, slices, 64)
            for cut in (norm.cut(y, operand), norm.cut(x, operand, weight, bias, 1e-5)):
                found = cut.blocks.transpose(2, 0, 3, 1, 4).reshape(slices, len(cut.scales), -1)
                np.testing.assert_array_equal(found[:, :tokens, :width], expected)
                assert not found[:, :, width:].any()
                assert_same_bits(cut.scales[:tokens], scales)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_numba_linear(tokens: int, precision: str) -> None:
    random = np.random.default_rng()
    for (into, out), activation in zip(WIDTHS, (None, "relu", "gelu", None, "tanh"), strict=True):
        x, weight, bias, residual = (
            random.standard_normal(s, dtype=np.float32) for s in ((tokens, into), (out, into), out, (tokens, 2 * out))
        )
        x *= np.float32(10.0) ** random.integers(-44, 38, (tokens, 1)).astype(np.float32)
        x[0] = 0
        x[1:2, 0], x[2:3, -1] = np.nan, np.inf
        weight[0] = 0
        for second in (False, True):
            for added in (None, residual[:, out:]):
                given = {"activation": activation, "residual": added}
                with np.errstate(over="ignore", invalid="ignore"):
                    expected, found = (
                        ops.linear(x, prepared(ops, weight, precision, second), bias, **given) for ops in (bitwise, numba)
                    )
                assert_same_bits(found, expected)


@pytest.mark.usefixtures("path")
def test_numba_linear_of_a_very_wide_row(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng()
    monkeypatch.setattr(bitwise, "DEEPEST", 128)
    x, weight, bias, residual = (random.standard_normal(s, dtype=np.float32) for s in ((7, 300), (33, 300), 33, (7, 33)))
    found = []
    for ops in (bitwise, numba):
        held = prepared(ops, weight, "highest", False)
        assert len(held) == 3
        found.append(ops.linear(x, held, bias, activation="gelu", residual=residual))
    assert_same_bits(found[1], found[0])
    exact = reference.linear(*(a.astype(float) for a in (x, weight, bias)), "gelu", residual.astype(float))
    assert relative_error(found[0], exact) < 1e-6


@compiled
@every_attention
def test_numba_attention(lengths: tuple[int, ...], causal: bool, extras: bool) -> None:
    for heads, d in ((3, 5), (2, 16), (5, 40), (1, 300)):
        qkv, sequences, given = attention_case(lengths, heads, d, causal, extras)
        expected, p = bitwise.attention(*qkv, sequences, heads, probs=True, **given)
        for probs in (False, True):
            found, probabilities = numba.attention(*qkv, sequences, heads, probs=probs, **given)
            assert_same_bits(found, expected)
        for one, other in zip(probabilities, p, strict=True):
            assert_same_bits(one, other)


@compiled
def test_numba_attention_of_a_cache() -> None:
    random = np.random.default_rng()
    B, S, past, heads, d = 3, 4, 280, 2, 5
    q = random.standard_normal((B * S, heads * d), dtype=np.float32)
    keys, values = random.standard_normal((2, B, heads, past + S + 9, d), dtype=np.float32)
    starts, length = np.arange(B + 1, dtype=np.int32), np.full(B, past + S, np.int32)
    sequences = Sequences(starts * S, starts[:-1] * 0, length, True)
    assert_same_bits(
        numba.attention(q, keys, values, sequences, heads)[0], bitwise.attention(q, keys, values, sequences, heads)[0]
    )


@compiled
@pytest.mark.skipif(COMPILED and not features.FUSED, reason="no fused multiply-add here")
def test_a_fused_multiply_add_would_be_seen() -> None:
    qkv, sequences, _ = attention_case((40,), 2, 16, False, False)
    fused, _ = load_backend("cpu").attention(*qkv, sequences, 2)
    assert not np.array_equal(fused, bitwise.attention(*qkv, sequences, 2)[0])


@compiled
def test_numba_embed() -> None:
    random = np.random.default_rng()
    word, position, segment = (random.standard_normal((n, 21), dtype=np.float32) for n in (50, 40, 2))
    ids, positions, types = random.integers(0, 50, 37), random.integers(0, 40, 37), random.integers(0, 2, 37)
    for where in (positions, None):
        for what in (ids, word[ids]):
            expected = bitwise.embed(what, where, types, word, position, segment)
            assert_same_bits(numba.embed(what, where, types, word, position, segment), expected)


# Whole models.

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=300, hidden_size=72, num_hidden_layers=2, num_attention_heads=3, intermediate_size=150, max_position_embeddings=90,
    type_vocab_size=1,
)  # fmt: skip


def texts() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids, lengths = random.integers(3, 300, (7, 70)), np.array([70, 1, 33, 17, 50, 16, 2])
    return ids, (np.arange(70) < lengths[:, None]).astype(int)


def models(cls: type, config: RobertaPreLayerNormConfig, outlying: bool = False, **running: Any) -> list[Any]:
    """One model on both backends, where asked with norm gains that are shared with weights."""
    tensors = dict(new_model(cls, config).tensors)
    for name, x in tensors.items():
        if outlying and ("orm.weight" in name or "orm.bias" in name):
            tensors[name] = np.where(np.arange(len(x)) % 48 == 5, np.float32(60) * x, x)
    return [cls(config, tensors, backend=backend, reproducible=True, **running) for backend in ("numpy", "cpu")]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("name", CLASSES)
def test_numba_models(name: str, precision: str) -> None:
    one, other = models(CLASSES[name], dataclasses.replace(CONFIG, is_decoder="Causal" in name), matmul_precision=precision)
    ids, mask = texts()
    if "MultipleChoice" in name:
        ids, mask = ids[:, None], mask[:, None]
    for padding in ("skip", "compute"):
        given = {"input_ids": ids, "attention_mask": mask, "padding": padding}
        assert_same_outputs(other(**given), one(**given))
        given |= {"output_hidden_states": True, "output_attentions": True}
        assert_same_outputs(other(**given), one(**given))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("outlying", [False, True])
def test_numba_decoders_with_a_cache_and_a_source(kind: str, outlying: bool) -> None:
    config = dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True, position_embedding_type=kind)
    ids, _ = texts()
    source = np.random.default_rng(0).standard_normal((7, 5, 72), np.float32)
    steps = []
    for model in models(CLASSES["RobertaPreLayerNormForCausalLM"], config, outlying):
        past, logits = None, []
        for part in (slice(0, 20), slice(20, 21), slice(21, 33)):
            output = model(ids[:, part], past_key_values=past, encoder_hidden_states=source, use_cache=True)
            past = output.past_key_values
            logits.append(output.logits)
        steps.append([*logits, *flatten({"past": past}.items()).values()])
    for found, expected in zip(*steps, strict=True):
        assert_same_bits(found, expected)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    "fields", [{}, {"chunk_size_feed_forward": 35}, {"position_embedding_type": "relative_key"}, {"hidden_act": "mish"}], ids=str
)
@pytest.mark.parametrize("outlying", [False, True])
def test_numba_models_with_masks(fields: dict[str, Any], outlying: bool) -> None:
    ids, _ = texts()
    random = np.random.default_rng(0)
    given = {"attention_mask": (random.random((7, 70, 70)) < 0.7).astype(int), "head_mask": random.random((2, 3))}
    config = dataclasses.replace(CONFIG, **fields)
    one, other = models(CLASSES["RobertaPreLayerNormForMaskedLM"], config, outlying)
    assert_same_outputs(other(ids, **given), one(ids, **given))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("model_type", CONFIGS)
def test_numba_families(model_type: str) -> None:
    fields = {entry.name: getattr(CONFIG, entry.name) for entry in dataclasses.fields(CONFIG) if entry.init}
    config = CONFIGS[model_type](**fields | {"model_type": model_type})
    masked = KIN[model_type]["ForMaskedLM"]
    one, other = models(masked, config)
    assert_same_outputs(other(*texts()), one(*texts()))


@compiled
def test_numba_encoder_decoder() -> None:
    decoding = dataclasses.replace(CONFIG, hidden_size=48, is_decoder=True, add_cross_attention=True)
    weight, bias = (np.random.default_rng(0).standard_normal(s, np.float32) for s in ((48, 72), 48))
    encoders = models(CLASSES["RobertaPreLayerNormModel"], CONFIG)
    decoders = models(CLASSES["RobertaPreLayerNormForCausalLM"], decoding)
    ids, mask = texts()
    one, other = (
        tinyroberta.EncoderDecoderModel(*pair, projection={"weight": weight, "bias": bias})(ids, mask, decoder_input_ids=ids)
        for pair in zip(encoders, decoders, strict=True)
    )
    assert_same_bits(other.logits, one.logits)


@compiled
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_golden(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for backend in ("numpy", "cpu"):
        monkeypatch.setattr("test_golden.model_of", lambda folder, _, changes, at=backend: golden(folder, changes, at))
        outputs.append(call(case, "float32", past_of(case, "float32"), padding="compute"))
        error, field = worst(flatten(outputs[-1].items()), case.outputs)
        assert error <= TOLERANCE["float32"], field
    found, expected = ({name: x for name, x in flatten(output.items()).items() if name != "loss"} for output in outputs)
    for name, x in expected.items():
        assert_same_bits(found[name], x)


@cache
def golden(folder: str, changes: str, backend: str) -> Any:
    config = dataclasses.replace(RobertaPreLayerNormConfig.from_pretrained(FOLDER / folder), **json.loads(changes))
    assert config.architectures
    return CLASSES[config.architectures[0]].from_pretrained(FOLDER / folder, config=config, backend=backend, reproducible=True)


BACKENDS = ["numpy", pytest.param("cpu", marks=compiled)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_text_has_the_same_bits_alone_in_any_batch_and_order_with_any_threads(backend: str, precision: str) -> None:
    cls = CLASSES["RobertaPreLayerNormForMaskedLM"]
    running = {"backend": backend, "matmul_precision": precision, "reproducible": True}
    model = new_model(cls, CONFIG, **running)
    ids, mask = texts()
    whole = model(ids, mask).logits
    exact = new_model(cls, CONFIG, dtype="float64")(ids, mask).logits
    assert relative_error(whole, exact) < {"highest": 6e-7, "high": 2e-4}[precision]
    for threads in (1, 2):
        if importlib.util.find_spec("threadpoolctl") is not None:
            assert_same_bits(new_model(cls, CONFIG, threads=threads, **running)(ids, mask).logits, whole)
    order = np.random.default_rng().permutation(len(ids))
    assert_same_bits(model(ids[order], mask[order]).logits, whole[order])
    for b, length in enumerate(mask.sum(1)):
        assert_same_bits(model(ids[b : b + 1, :length]).logits[0], whole[b, :length])


def test_outlying_norm_gains_cost_no_accuracy() -> None:
    config = dataclasses.replace(CONFIG, hidden_size=192, intermediate_size=400, add_cross_attention=True, is_decoder=True)
    cls = CLASSES["RobertaPreLayerNormForCausalLM"]
    tensors = dict(new_model(cls, config).tensors)
    for name, x in tensors.items():
        if "orm.weight" in name or "orm.bias" in name:
            tensors[name] = np.where(np.arange(len(x)) % 96 == 5, np.float32(60) * x, x)
    ids, mask = texts()
    given = {"encoder_hidden_states": np.random.default_rng(0).standard_normal((7, 5, 192)), "use_cache": False}
    exact = cls(config, tensors, dtype="float64")(ids, mask, **given).logits
    single = relative_error(cls(config, tensors, backend="numpy")(ids, mask, **given).logits, exact)
    ours = relative_error(cls(config, tensors, backend="numpy", reproducible=True)(ids, mask, **given).logits, exact)
    assert ours < 2 * single + 1e-7


@compiled
def test_models_of_both_kinds_run_at_once() -> None:
    cls, (ids, mask) = CLASSES["RobertaPreLayerNormModel"], texts()
    runs = [new_model(cls, CONFIG, backend="cpu", reproducible=kind, threads=n) for kind in (False, True) for n in (1, 2)]
    alone, wrong = [model(ids, mask).last_hidden_state for model in runs], []

    def run(model: Any, expected: np.ndarray) -> None:
        wrong.extend(not np.array_equal(model(ids, mask).last_hidden_state, expected) for _ in range(5))

    runners = [threading.Thread(target=run, args=pair) for pair in zip(runs, alone, strict=True)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert wrong == [False] * 20


# One machine and another: what these models give was computed once and written here.


def integers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """24-bit integers that look random, by integer arithmetic, over 2^23: from -1 to 1."""
    x = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    for factor in (0x7FEB352D, 0x846CA68B):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(factor)
    return ((x >> np.uint32(8)).astype(np.int32) - 2**23).astype(np.float32).reshape(shape) / np.float32(2**23)


STORED = {
    "3e5ac9f8470e7ed9a6bb74d49745eb5cbbc7ceee15a8295d3b7f0a636526b354": (
        "RobertaPreLayerNormForMaskedLM", "gelu", "absolute", "highest",
    ),
    "dd4d0917eaa4478225fe0304e2d238cedc814827213b78aaa1ddde4aa8530404": (
        "RobertaPreLayerNormForCausalLM", "gelu_new", "relative_key_query", "highest",
    ),
    "449439c15537b5b79f47627da01ecfa1d3ca80735ddf07cf8d9e06b4f685b1a4": (
        "XLMRobertaForTokenClassification", "mish", "absolute", "high",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stored", STORED, ids=[case[0] for case in STORED.values()])
def test_every_machine_gives_these_bits(stored: str, backend: str) -> None:
    name, hidden_act, kind, precision = STORED[stored]
    cls = getattr(tinyroberta, name)
    config = CONFIGS[cls.model_type](
        vocab_size=300, hidden_size=320, num_hidden_layers=2, num_attention_heads=5, intermediate_size=1100, type_vocab_size=2,
        max_position_embeddings=300, hidden_act=hidden_act, position_embedding_type=kind, is_decoder="Causal" in name,
    )  # fmt: skip
    tensors: dict[str, np.ndarray] = {}
    for seed, (key, shape) in enumerate((cls.encoder_shapes(config) | cls.head_shapes(config)).items()):
        gain = key.endswith("weight") and len(shape) == 1
        tensors[key] = np.float32(gain) + integers(shape, seed) / np.float32(4 if len(shape) == 1 else 16)
        if "attention.LayerNorm.weight" in key:
            tensors[key][7] = 60  # shared with the weights
    if "lm_head.decoder.weight" in tensors:
        tensors["lm_head.decoder.weight"] = tensors["embeddings.word_embeddings.weight"]
    ids = (np.arange(2 * 270).reshape(2, 270) * 7919 + 11) % 297 + 3
    mask = (np.arange(270) < [[270], [131]]).astype(int)
    model = cls(config, tensors, backend=backend, matmul_precision=precision, reproducible=True)
    logits = model(ids, mask).logits
    exact, single = (cls(config, tensors, backend="numpy", dtype=dtype)(ids, mask).logits for dtype in ("float64", "float32"))
    assert relative_error(logits, exact) < {"highest": 2 * relative_error(single, exact), "high": 2e-4}[precision]
    assert hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest() == stored


# What cannot be had is said.


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_reproduced_is_refused(backend: str) -> None:
    model = CLASSES["RobertaPreLayerNormModel"]
    with pytest.raises(Error, match="float64"):
        model(CONFIG, backend=backend, reproducible=True, dtype="float64")
    with pytest.raises(Error, match="Python function"):
        model(dataclasses.replace(CONFIG, hidden_act=np.tanh), backend=backend, reproducible=True)(np.array([[5]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_medium_is_high(backend: str) -> None:
    ids, mask = texts()
    medium, high = (
        new_model(CLASSES["RobertaPreLayerNormModel"], CONFIG, backend=backend, reproducible=True, matmul_precision=precision)
        for precision in ("medium", "high")
    )
    assert_same_outputs(medium(ids, mask), high(ids, mask))
    assert (medium.backend, medium.ops.__name__.split(".")[-1]) == (backend, {"numpy": "bitwise"}.get(backend, "reproducible"))

"""backends/numpy.py: every op against float64 (or exact integers) on fresh random data and odd shapes."""

import math

import numpy as np
import pytest
from models_for_tests import dense

from tinyroberta import Error
from tinyroberta.backends import BACKENDS, Backend, Sequences, Settings, load_backend
from tinyroberta.backends import numpy as ops
from tinyroberta.backends.records import WORDS, Table

TOKENS = (1, 7, 33, 129)
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def relative(x: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm(tokens: int) -> None:
    random = np.random.default_rng()
    width = int(random.integers(2, 200))
    x, weight, bias = (random.standard_normal(shape) for shape in ((tokens, width), width, width))
    centred = x - x.sum(1, keepdims=True) / width
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / width + 1e-5)
    exact = centred / deviation * weight + bias
    for dtype, unit in UNIT.items():
        out = ops.layer_norm(*(a.astype(dtype) for a in (x, weight, bias)), eps=1e-5)
        assert out.dtype == dtype
        # the mean and the inputs err by units of |x|, which dividing by a small deviation enlarges; then a mean and six roundings
        size = np.abs(x).max(1, keepdims=True) / deviation * np.abs(weight) + np.abs(exact) + np.abs(bias)
        assert (np.abs(out - exact) <= (2 * math.log2(width) + 8) * 2 * unit * size).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_linear(tokens: int, activation: str | None) -> None:
    random = np.random.default_rng()
    into, out = (int(n) for n in random.integers(1, 300, 2))
    x, weight, bias, residual = (random.standard_normal(s) for s in ((tokens, into), (out, into), out, (tokens, out)))
    exact = np.array([[math.fsum(row * column) for column in weight] for row in x]) + bias
    exact = (np.maximum(exact, 0) if activation else exact) + residual
    for dtype, unit in UNIT.items():
        y = ops.linear(*(a.astype(dtype) for a in (x, weight, bias)), activation=activation, residual=residual.astype(dtype))
        assert y.dtype == dtype
        # a sum of I products errs by at most I units of the sum of magnitudes (Higham 2002, 3.5), the inputs by one each
        bound = (into + 4) * unit * (np.abs(x) @ np.abs(weight).T + np.abs(bias) + np.abs(residual))
        assert (np.abs(y - exact) <= bound).all()


def exact_attention(q, k, v, heads, causal, bias, head_mask):  # one sequence, float64, one score at a time
    d = q.shape[1] // heads
    out, probabilities = np.zeros_like(q), np.zeros((heads, len(q), len(k)))
    for h in range(heads):
        columns = slice(h * d, (h + 1) * d)
        for i in range(len(q)):
            scores = [math.fsum(q[i, columns] * k[j, columns]) / math.sqrt(d) + bias[h, i, j] for j in range(len(k))]
            last = len(k) - len(q) + i if causal else len(k)
            weights = [math.exp(s - max(scores[: last + 1])) if j <= last else 0.0 for j, s in enumerate(scores)]
            probabilities[h, i] = np.array(weights) / math.fsum(weights) * head_mask[h]
            out[i, columns] = probabilities[h, i] @ v[:, columns]
    return out, probabilities


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 33), (5, 12)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extras", [False, True])
def test_attention(lengths: tuple[int, ...], causal: bool, extras: bool) -> None:
    random = np.random.default_rng()
    heads, d, B, T = 3, int(random.integers(1, 20)), len(lengths), sum(lengths)
    q, k, v = random.standard_normal((3, T, heads * d))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    sequences = Sequences(starts, starts[:-1], np.array(lengths, np.int32), causal)
    extras = extras and len(set(lengths)) == 1
    shape = (B, heads, max(lengths), max(lengths))
    bias, head_mask = random.standard_normal(shape), random.random((1, heads, 1, 1))
    for dtype, unit in UNIT.items():
        given = {"bias": bias.astype(dtype), "head_mask": head_mask.astype(dtype)} if extras else {}
        out, probabilities = ops.attention(*(a.astype(dtype) for a in (q, k, v)), sequences, heads, probs=True, **given)
        assert out.dtype == dtype
        for b, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            rows = slice(start, start + length)
            added = bias[b] if extras else np.zeros((heads, length, length))
            scaled = head_mask[0, :, 0, 0] if extras else np.ones(heads)
            exact, p = exact_attention(q[rows], k[rows], v[rows], heads, causal, added, scaled)
            # scores err by (d + 3) units of their size, at most some 4 d here; exp turns that into a relative error of p
            tolerance = 4 * (d + 4) * (4 * d + 8) * unit
            assert relative(probabilities[b], p) < tolerance
            assert relative(out[rows], exact) < tolerance


def test_attention_reads_a_cache_as_it_reads_packed_rows() -> None:
    random = np.random.default_rng()
    B, S, past, heads, d = 3, 4, 6, 2, 5
    q = random.standard_normal((B * S, heads * d))
    keys, values = random.standard_normal((2, B, heads, past + S + 9, d))
    starts = np.arange(B + 1, dtype=np.int32)
    length = np.full(B, past + S, np.int32)
    cached, _ = ops.attention(q, keys, values, Sequences(starts * S, starts[:-1] * 0, length, True), heads)
    rows = [x[:, :, : past + S].transpose(0, 2, 1, 3).reshape(-1, heads * d) for x in (keys, values)]
    packed, _ = ops.attention(q, *rows, Sequences(starts * S, starts[:-1] * (past + S), length, True), heads)
    np.testing.assert_array_equal(cached, packed)


def exact_activation(name: str, x: float) -> float:
    phi = 0.5 * math.erfc(-x / math.sqrt(2))
    tanh_gelu = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    sigmoid = 1 / (1 + math.exp(-x))
    softplus = max(x, 0) + math.log1p(math.exp(-abs(x)))
    values = dict.fromkeys(("gelu", "gelu_python"), x * phi)
    values |= dict.fromkeys(("gelu_new", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"), tanh_gelu)
    values |= {
        "gelu_10": min(max(x * phi, -10), 10),
        "gelu_fast": 0.5 * x * (1 + math.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        "quick_gelu": x / (1 + math.exp(-1.702 * x)),
        "laplace": 0.5 * (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
        "leaky_relu": x if x > 0 else 0.01 * x,
        "linear": x,
        "mish": x * math.tanh(softplus),
        "relu": max(x, 0),
        "relu2": max(x, 0) ** 2,
        "relu6": min(max(x, 0), 6),
        "sigmoid": sigmoid,
        "silu": x * sigmoid,
        "swish": x * sigmoid,
        "tanh": math.tanh(x),
        "hardswish": x * min(max(x + 3, 0), 6) / 6,
        "sqrtsoftplus": math.sqrt(softplus),
    }
    return values[name]


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activation(name: str) -> None:
    random = np.random.default_rng()
    x = np.concatenate([random.standard_normal(500) * 4, random.uniform(-1e-3, 1e-3, 50), [0.0, -0.0, 30, -30]])
    for dtype, unit in UNIT.items():
        given = x.astype(dtype)
        out = ops.activation(given, name)
        assert out.dtype == dtype
        exact = np.array([exact_activation(name, value) for value in given.tolist()])
        # a few roundings of the argument of an exp or tanh of size up to (4 * 4)^2 / 2; results near 0 are held absolutely
        assert np.all(np.abs(out - exact) <= 40 * unit * np.maximum(np.abs(exact), 0.05) + 8 * unit)
    assert np.isfinite(ops.activation(np.array([-1e4, 1e4, -200.0, 200.0]), name)).all()


def test_erfc_is_relatively_accurate_into_the_tail() -> None:
    x = np.random.default_rng().uniform(-6, 5, 4000)
    exact = np.array([math.erfc(value) for value in x.tolist()])
    assert np.max(np.abs(ops.erfc(x) / exact - 1)) < 2e-14
    single = x.astype(np.float32)
    exact = np.array([math.erfc(value) for value in single.tolist()])
    assert np.max(np.abs(ops.erfc(single) / exact - 1)) < (5**2 + 8) * 2.0**-23


def test_every_backend_keeps_the_contract() -> None:
    import inspect

    contract = {name: f for name, f in vars(Backend).items() if inspect.isfunction(f) and not name.startswith("_")}
    for backend in set(BACKENDS) - {"cupy"}:  # test_cupy_backend.py holds that one to it, on its stand-in
        for module in (load_backend(backend), load_backend(backend, reproducible=True)):
            for name, declared in contract.items():
                ours = [(p.name, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
                wanted = [(p.name, p.default) for p in inspect.signature(declared).parameters.values()][1:]
                assert ours == wanted, (module.__name__, name)


def test_prepare_joins_and_shares() -> None:
    weights, biases = ([np.full(shape, i, np.float16) for i in range(3)] for shape in ((2, 2), 2))
    word = np.ones((3, 2), np.float16)
    tree = {
        "self": {"qkv": dense(weights[0], parts=weights, biases=biases)},
        "word": Table(word, WORDS, True),
        "decoder": dense(word),
    }
    ready = ops.prepare(tree, Settings())
    assert ready["self"]["qkv"]["weight"].tolist() == [[0, 0]] * 2 + [[1, 1]] * 2 + [[2, 2]] * 2
    assert ready["self"]["qkv"]["bias"].tolist() == [0, 0, 1, 1, 2, 2]
    assert ready["word"]["weight"].dtype == np.float32
    assert np.shares_memory(ready["word"]["weight"], ready["decoder"]["weight"])
    held = np.ones((3, 2), np.float32)
    assert np.shares_memory(ops.prepare({"x": dense(held)}, Settings())["x"]["weight"], held)


def test_limits_of_overlapping_calls_are_lifted_at_the_end() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def limits() -> list[int]:
        return [entry["num_threads"] for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "blas"]

    before = limits()
    one, two = ops.running(Settings(threads=1)), ops.running(Settings(threads=1))
    one.__enter__()
    assert set(limits()) == {1}
    two.__enter__()
    one.__exit__(None, None, None)
    assert set(limits()) == {1}
    two.__exit__(None, None, None)
    assert limits() == before


def test_unknown_backends_and_settings_are_refused() -> None:
    with pytest.raises(Error, match="backend"):
        load_backend("abacus")

"""What several tests share: outputs as flat arrays, the error between two of them, fresh models that hide nothing; the definition
of sliced products.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinyroberta import Cache, Error, RobertaPreLayerNormConfig, trace
from tinyroberta.backends import load_backend
from tinyroberta.backends.records import CALLER, Activated, Dense, Elsewhere, mapped

UNIT = 2.0**-24  # float32's rounding of a number near 1
TOLERANCE = {"float64": 1e-12, "float32": 2e-6}  # relative, in the Frobenius norm

BY_TOKEN = {"last_hidden_state": 3, "hidden_states": 3, "logits": 3, "start_logits": 2, "end_logits": 2}  # and their rank

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


def skip_without(backend: str) -> None:
    """Skip a test where a backend cannot run."""
    try:
        load_backend(backend)
    except Error as error:
        pytest.skip(str(error))


def relative_error(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||; infinite where shapes or NaNs differ, or where only one of them is all zeros."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return np.inf
    finite = np.isfinite(expected)
    difference, size = np.linalg.norm(found[finite] - expected[finite]), np.linalg.norm(expected[finite])
    return float(difference / size) if size else (np.inf if difference else 0.0)


def flatten(fields: Any) -> Arrays:
    """Arrays by the path to them, as hidden_states.0 or past_key_values.1.0; fields that are None are left out."""
    flat: Arrays = {}
    for name, value in fields:
        if isinstance(value, tuple | list | Cache):
            flat |= flatten((f"{name}.{index}", entry) for index, entry in enumerate(value))
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def worst(found: Arrays, expected: Arrays) -> tuple[float, str]:
    """The largest relative error and whose it is; the fields must be the same."""
    assert sorted(found) == sorted(expected)
    return max(((relative_error(found[name], expected[name]), name) for name in expected), default=(0.0, ""))


def as_skipped(outputs: Arrays, inputs: Arrays) -> Arrays:
    """What padding="skip" makes of outputs: zeros at the padding that a 0/1 mask names, but for every text's position 0.

    Nothing is skipped where labels are given, where the mask is 3-D or fractional, or where it leaves a text empty.
    """
    mask, tokens = inputs.get("attention_mask"), inputs.get("input_ids")
    tokens = inputs["inputs_embeds"][..., 0] if tokens is None else tokens
    if mask is None or mask.ndim > tokens.ndim or not np.isin(mask, (0, 1)).all() or not mask.any(-1).all():
        return outputs
    if "labels" in inputs or "end_positions" in inputs:
        return outputs
    texts, length = tokens.size // tokens.shape[-1], tokens.shape[-1]
    kept = np.array(np.broadcast_to(mask.reshape(-1, mask.shape[-1])[:, -length:], (texts, length)), bool)
    kept[:, 0] = True
    result = {}
    for name, x in outputs.items():
        if "attentions" in name:
            x = x * kept[:, None, :, None]
        elif BY_TOKEN.get(name.split(".")[0]) == x.ndim and x.shape[:2] == kept.shape:
            x = x * kept.reshape(*kept.shape, *[1] * (x.ndim - 2))
        result[name] = x
    return result


def new_model(cls: type, config: RobertaPreLayerNormConfig, seed: int = 0, **running: Any) -> Any:
    """A model whose biases and norm gains are random too: a fresh model's zeros and ones would hide half the mistakes."""
    random = np.random.default_rng(seed)
    tensors = dict(cls(config, seed=seed).tensors)
    for name, x in tensors.items():
        gain = name.endswith("weight") and x.ndim == 1
        if gain or name.endswith("bias"):
            tensors[name] = np.float32(gain) + np.float32(0.3) * random.standard_normal(x.shape, np.float32)
    return cls(config, tensors, **running)


def shaken(model: Any, seed: int) -> Any:
    """A model in float64 of which every weight, operand and result is moved at random: Monte Carlo arithmetic (Parker 1997).

    By up to half a step of 24 bits of the row's largest number, which is how digits are rounded, and what float32 rounds at most.
    How far its outputs then are from the model's own is what no arithmetic of 24 bits can be blamed for.
    """
    definition, random = load_backend("numpy"), np.random.default_rng(seed)

    def shake(x: Array) -> Array:
        return x + UNIT * np.abs(x).max(-1, keepdims=True) * random.uniform(-1, 1, x.shape)

    def shake_record(record: Any) -> Any:
        if isinstance(record, Dense):
            parts, biases = ([shake(x.astype(np.float64)) for x in xs] for xs in (record.parts, record.biases))
            return replace(record, parts=parts, biases=biases)
        shaken = {name: shake(x.astype(np.float64)) for name, x in vars(record).items() if isinstance(x, np.ndarray)}
        return replace(record, **shaken)

    def attention(q: Array, k: Array, v: Array, *others: Any) -> Any:
        out, probabilities = definition.attention(shake(q), shake(k), shake(v), *others)
        return shake(out), probabilities and [shake(p) for p in probabilities]

    shaking = {
        "embed": lambda *given: shake(definition.embed(*given)),
        "layer_norm": lambda x, weight, bias, eps: shake(definition.layer_norm(shake(x), weight, bias, eps)),
        "linear": lambda x, *others, **more: shake(definition.linear(shake(x), *others, **more)),
        "attention": attention,
        "relative": lambda *given: shake(definition.relative(*given)),
        "prepare": lambda tree, settings: definition.prepare(mapped(tree, shake_record), settings),
    }
    kind = type(model)
    return type(kind.__name__, (kind,), {"ops": SimpleNamespace(**vars(definition) | shaking)})(
        model.config, model.tensors, backend="numpy", dtype="float64"
    )


def dense(weight: Array, bias: Array | None = None, after_activation: bool = False, **roles: Any) -> Dense:
    """The record of a dense layer that stands alone, whose rows come out of an activation or from elsewhere."""
    layer = Dense((weight,), (np.zeros(len(weight), np.float32) if bias is None else bias,), Elsewhere(), CALLER, 0)
    return replace(layer, **{"reads": Activated(layer)} if after_activation else {}, **roles)


def digits(x: Array, count: int) -> tuple[Array, Array]:  # (T, K) -> (count, T, K) int64, (T,)
    top = sum(127 * 256**i for i in range(count)) - 1
    largest = np.abs(x).max(1, keepdims=True)
    with np.errstate(over="ignore"):
        gain = np.where(largest == 0, np.float32(1), np.float32(top) / np.where(largest == 0, np.float32(1), largest))
    gain = np.minimum(gain, np.float32(2.0**126))
    rest, found = np.rint(x * gain).astype(np.int64), []
    for _ in range(count - 1):
        digit = ((rest + 128) & 255) - 128
        found.append(digit)
        rest = (rest - digit) >> 8
    return np.stack([rest, *found[::-1]]), (np.float32(256 ** (count - 1)) / gain)[:, 0]


def sliced_product(x: Array, weight: Array, count: int, diagonals: int, coarse: bool = True) -> Array:
    """The definition: exact sums of digit products, a diagonal at a time, put together in float32.

    coarse: a row whose largest number is more than some 6 times the root mean square has one diagonal more.
    """
    (a, row_scale), (b, column_scale) = digits(x, count), digits(weight, count)
    sums = [sum(a[i] @ b[j].T for i in range(count) for j in range(count) if i + j == n) for n in range(diagonals + 1)]
    sums[-1] = sums[-1] * (coarse & (diagonals <= count) & (np.square(a[0]).mean(1) < 448))[:, None]
    total = sums[-1].astype(np.float32)
    for diagonal in sums[-2::-1]:
        total = diagonal.astype(np.float32) + total * np.float32(1 / 256)
    return total * (row_scale[:, None] * column_scale)


def host_arrays(model: Any, output: Any) -> Arrays:
    """An output's arrays by the path to them, on the host."""
    part = getattr(model, "decoder", model)
    return flatten((name, _on_host(part.ops, value)) for name, value in output.items() if name != "past_key_values")


def _on_host(ops: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_on_host(ops, x) for x in value)
    return None if value is None else ops.to_numpy(value)


def assert_traced(model: Any, inputs: Arrays, **options: Any) -> Any:
    """A trace of everything: it changes no bit, of the outputs nor of those with states and probabilities, which it holds too."""
    part = getattr(model, "decoder", model)
    plain = host_arrays(model, model(**inputs, **options))
    both = {"output_hidden_states": True, "output_attentions": True}
    kept = host_arrays(model, model(**inputs, **both, **options))
    if part.ops.keeps_alike():
        assert_equal({name: kept[name] for name in plain}, plain)
    with trace(model) as seen:
        assert_equal(host_arrays(model, model(**inputs, **options)), plain)
    with trace(model) as again:
        assert_equal(host_arrays(model, model(**inputs, **both, **options)), kept)
    same = {"*": lambda _, x: x.copy()}
    with trace(model, [], same) as nothing:
        assert_equal(host_arrays(model, model(**inputs, **options)), plain)
    assert not list(nothing)
    assert set(seen) == set(again) <= set(model.tap_names()) == set(seen.names)
    left = set(seen.names) - set(seen)  # a cross-attention without a source is passed by
    assert not {name for name in left if "crossattention" not in name}
    for call in again.calls:
        encoder = "encoder_" if call.part == "encoder." else ""
        _assert_holds(
            call, kept, encoder, "decoder_" if call.part == "decoder." and "decoder_hidden_states.0" in kept else encoder
        )
    return seen


def _assert_holds(call: Any, kept: Arrays, encoder: str, own: str) -> None:
    def name(module: str) -> str:
        return call.part + module

    layers = sum(name.startswith(f"{own}hidden_states.") for name in kept) - 1
    final = next((name(x) for x in ("LayerNorm", "encoder.LayerNorm") if name(x) in call.arrays), None)
    for index in range(layers + 1):
        module = name("embeddings" if index == 0 else f"encoder.layer.{index - 1}")
        module = final if final and index == layers else module  # config.tie_last_hidden_states
        assert_equal({"": call.rows.unpack(call.arrays[module])}, {"": kept[f"{own}hidden_states.{index}"]})
    for kind, field in (("attention", f"{own}attentions"), ("crossattention", "cross_attentions")):
        for index in range(layers if kind == "attention" or ("cross_attentions.0" in kept and not encoder) else 0):
            packed, wanted = call.arrays[name(f"encoder.layer.{index}.{kind}.self.probs")], kept[f"{field}.{index}"]
            starts = call.rows.sequences.query_start
            lengths = call.rows.sequences.key_length if kind == "attention" else np.full(len(starts), wanted.shape[3])
            each = [packed[a:b, :, :n].transpose(1, 0, 2) for a, b, n in zip(starts[:-1], starts[1:], lengths, strict=False)]
            keys = None if kind == "attention" else wanted.shape[3]
            assert_equal({"": call.rows.unpack_probabilities(each, keys)}, {"": wanted})


def assert_equal(found: Arrays, expected: Arrays) -> None:
    """Equal names, shapes and numbers."""
    assert sorted(found) == sorted(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)

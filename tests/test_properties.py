"""What must hold for every model and every text: padding, neighbours, order, later tokens and caching change nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models_for_tests import BY_TOKEN, TOLERANCE, Arrays, new_model, relative_error

from tinyroberta import RobertaPreLayerNormConfig
from tinyroberta.models import CLASSES

PAD = 1
FIELDS = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
DECODERS = ("RobertaPreLayerNormModel", "RobertaPreLayerNormForCausalLM")

some = settings(max_examples=20, deadline=None, derandomize=True)
every_class = pytest.mark.parametrize("name", list(CLASSES))
every_decoder = pytest.mark.parametrize("name", DECODERS)
every_position_type = pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
seeds = st.integers(0, 2**32 - 1)
texts = st.lists(st.lists(st.integers(2, 29), min_size=1, max_size=8), min_size=1, max_size=4)
sides = st.sampled_from(["right", "left"])
dtypes = st.sampled_from(sorted(TOLERANCE))


def model_of(name: str, seed: int, dtype: str = "float64", **fields: Any) -> Any:
    """A small model of a class, its shape drawn from the seed; a decoder where the class is for that."""
    random = np.random.default_rng(seed)
    heads = int(random.choice([1, 2, 3]))
    config = RobertaPreLayerNormConfig(
        **{
            "vocab_size": 30,
            "hidden_size": heads * int(random.choice([8, 12])),
            "num_attention_heads": heads,
            "num_hidden_layers": int(random.integers(1, 4)),
            "intermediate_size": int(random.integers(1, 33)),
            "max_position_embeddings": 40,
            "initializer_range": 0.2,
            "is_decoder": name.endswith("CausalLM"),
        }
        | fields
    )
    backend = "numpy" if seed % 2 else None
    return new_model(CLASSES[name], config, seed, backend=backend, dtype=dtype)


def padded(rows: list[list[int]], side: str, extra: int = 0) -> tuple[Any, Any]:
    """Texts as one array of ids with `extra` columns more than the longest needs, and their mask."""
    length = max(map(len, rows)) + extra
    ids, mask = np.full((len(rows), length), PAD), np.zeros((len(rows), length), int)
    for b, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[b, place], mask[b, place] = row, 1
    return ids, mask


def outputs(model: Any, ids: Any, mask: Any, **options: Any) -> Arrays:
    """A model's results by field, for multiple choice each text being the one choice."""
    if "MultipleChoice" in type(model).__name__:
        ids, mask = ids[:, None], mask[:, None]
    output = model(input_ids=ids, attention_mask=mask, **options)
    return {name: np.asarray(output[name]) for name in FIELDS if name in output}


def of_text(results: Arrays, b: int, mask: Any) -> Arrays:
    """One text's results, by token only where the mask is 1; not those of position 0 where that is padding."""
    by_token = {name: x[b][mask[b] == 1] for name, x in results.items() if BY_TOKEN.get(name) == x.ndim}
    return by_token | {name: x[b] for name, x in results.items() if name not in by_token and mask[b, 0]}


def assert_close(found: Arrays, expected: Arrays, dtype: str = "float64") -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if dtype == "float64" or x.size >= 8:  # of few numbers that cancel, a relative error in float32 says nothing
            assert relative_error(found[name], x) <= TOLERANCE[dtype], name


@every_class
@some
@given(seed=seeds, rows=texts, side=sides, extra=st.integers(0, 4), dtype=dtypes)
def test_padding_and_batching_change_nothing(
    name: str, seed: int, rows: list[list[int]], side: str, extra: int, dtype: str
) -> None:
    model = model_of(name, seed, dtype)
    ids, mask = padded(rows, side, extra)
    skipped, computed = outputs(model, ids, mask), outputs(model, ids, mask, padding="compute")
    for b, row in enumerate(rows):
        alone = of_text(outputs(model, np.array([row]), np.ones((1, len(row)), int)), 0, np.ones((1, len(row)), int))
        for batched in (of_text(skipped, b, mask), of_text(computed, b, mask)):
            assert_close(batched, {field: x for field, x in alone.items() if field in batched}, dtype)
            assert mask[b, 0] == 0 or batched.keys() == alone.keys()
    gone = mask == 0
    gone[:, 0] = False
    for field, x in skipped.items():
        if BY_TOKEN.get(field) == x.ndim:
            assert not x[gone].any(), field
            assert not gone.any() or computed[field][gone].any(), field


@every_class
@some
@given(seed=seeds, rows=texts, side=sides, data=st.data())
def test_batch_order_changes_nothing(name: str, seed: int, rows: list[list[int]], side: str, data: st.DataObject) -> None:
    model = model_of(name, seed)
    ids, mask = padded(rows, side)
    order = data.draw(st.permutations(range(len(rows))))
    expected = outputs(model, ids, mask)
    assert_close(outputs(model, ids[order], mask[order]), {field: x[order] for field, x in expected.items()})


@every_class
@some
@given(seed=seeds, rows=texts, side=sides)
def test_neighbours_change_no_bit(name: str, seed: int, rows: list[list[int]], side: str) -> None:
    model = model_of(name, seed, "float32")
    ids, mask = padded([[5, 6, 7], *rows], side)
    others = ids.copy()
    others[1:] = np.where(mask[1:] == 1, 31 - ids[1:], PAD)
    before, after = of_text(outputs(model, ids, mask), 0, mask), of_text(outputs(model, others, mask), 0, mask)
    for field, x in before.items():
        np.testing.assert_array_equal(after[field], x, err_msg=field)


@every_class
@some
@given(seed=seeds, data=st.data())
def test_masked_tokens_could_be_absent(name: str, seed: int, data: st.DataObject) -> None:
    model = model_of(name, seed)
    random = np.random.default_rng(seed)
    ids, length = random.integers(2, 30, (1, 8)), 8
    kept = np.array([True, *data.draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))])
    places = np.arange(length)[None] + 2
    whole = outputs(model, ids, kept[None].astype(int), position_ids=places)
    fewer = outputs(model, ids[:, kept], np.ones((1, kept.sum()), int), position_ids=places[:, kept])
    assert_close(of_text(whole, 0, kept[None]), of_text(fewer, 0, np.ones((1, kept.sum()), int)))


@every_position_type
@every_decoder
@some
@given(seed=seeds, rows=texts, dtype=dtypes, padding=st.sampled_from(["skip", "compute"]), data=st.data())
def test_later_tokens_change_no_bit(
    name: str, kind: str, seed: int, rows: list[list[int]], dtype: str, padding: str, data: st.DataObject
) -> None:
    model = model_of(name, seed, dtype, is_decoder=True, position_embedding_type=kind)
    ids, mask = padded(rows, "right")
    at = data.draw(st.integers(0, ids.shape[1] - 1))
    changed = ids.copy()
    changed[:, at:] = np.where(mask[:, at:] == 1, 31 - ids[:, at:], PAD)
    options = {"padding": padding, "use_cache": data.draw(st.booleans())}
    before, after = outputs(model, ids, mask, **options), outputs(model, changed, mask, **options)
    for field in before.keys() - {"pooler_output"}:
        np.testing.assert_array_equal(after[field][:, :at], before[field][:, :at], err_msg=field)
        assert (after[field][:, at] != before[field][:, at]).any(1)[mask[:, at] == 1].all()


@every_position_type
@every_decoder
@some
@given(seed=seeds, rows=texts, side=sides, cross=st.booleans(), dtype=dtypes, data=st.data())
def test_cached_equals_uncached(
    name: str, kind: str, seed: int, rows: list[list[int]], side: str, cross: bool, dtype: str, data: st.DataObject
) -> None:
    fields = {"is_decoder": True, "add_cross_attention": cross, "position_embedding_type": kind}
    model = model_of(name, seed, dtype, **fields)
    ids, mask = padded(rows, side)
    length = ids.shape[1]
    places = PAD + mask.cumsum(1)
    types = np.random.default_rng(seed).integers(0, 2, ids.shape)
    options: dict[str, Any] = {}
    if cross:
        states = np.random.default_rng(seed).standard_normal((len(rows), 3, model.config.hidden_size))
        options["encoder_hidden_states"] = states
    whole = outputs(model, ids, mask, use_cache=False, position_ids=places, token_type_ids=types, **options)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=3))) if length > 1 else []
    past, pieces = None, []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        part = slice(start, end)
        output = model(
            ids[:, part],
            mask[:, :end],
            types[:, part],
            places[:, part],
            past_key_values=past,
            use_cache=True,
            **options,
        )
        past = output.past_key_values
        pieces.append({field: output[field] for field in FIELDS if field in output and field != "pooler_output"})
        assert past.get_seq_length() == end
    found = {field: np.concatenate([piece[field] for piece in pieces], 1) for field in pieces[0]}
    whole.pop("pooler_output", None)
    for b in range(len(rows)):
        assert_close(of_text(found, b, mask), of_text(whole, b, mask), dtype)


@some
@given(seed=seeds, rows=texts, side=sides, padding=st.sampled_from(["skip", "compute"]), data=st.data())
def test_kept_logits_are_some_of_all(seed: int, rows: list[list[int]], side: str, padding: str, data: st.DataObject) -> None:
    model = model_of("RobertaPreLayerNormForCausalLM", seed)
    ids, mask = padded(rows, side)
    whole = outputs(model, ids, mask, padding=padding)["logits"]
    count = data.draw(st.integers(1, ids.shape[1]))
    assert relative_error(outputs(model, ids, mask, padding=padding, logits_to_keep=count)["logits"], whole[:, -count:]) <= 1e-12
    places = np.array(data.draw(st.lists(st.integers(0, ids.shape[1] - 1), min_size=1, max_size=4)))
    kept = outputs(model, ids, mask, padding=padding, logits_to_keep=places)["logits"]
    assert relative_error(kept, whole[:, places]) <= 1e-12


@every_class
@some
@given(seed=seeds, rows=texts, side=sides)
def test_float32_agrees_with_float64(name: str, seed: int, rows: list[list[int]], side: str) -> None:
    ids, mask = padded(rows, side)
    exact, single = (outputs(model_of(name, seed, dtype), ids, mask) for dtype in ("float64", "float32"))
    assert {x.dtype.name for x in single.values()} == {"float32"}
    assert_close(single, exact, "float32")

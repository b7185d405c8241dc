"""From what a call is given, (B, S) or texts of any lengths, to packed tokens, (T,), and back: checks, positions, masks, packing.

There are two routes. Packed: the attended tokens are rows, and a text's position 0 in any case; nothing else is spent on padding.
Whole: every position is a row and the mask is added to the scores, as Hugging Face does; it is taken for what packing cannot say.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .backends import Sequences
from .config import RobertaPreLayerNormConfig
from .errors import Error, RangeError

Array = np.ndarray[Any, np.dtype[Any]]


class Rows(NamedTuple):
    """The tokens of a call that are computed, and what they may read.

    The rows of text b are query_start[b] : query_start[b + 1] of `sequences`. They are its tokens, in order; a text whose
    position 0 is padding has one row more, the last, which is that position's (`_packed` says why).
    """

    shape: tuple[int, int]  # (B, S)
    places: Array | None  # (T,), where each row stands among the B * S positions; None: every position is a row
    sequences: Sequences
    first_rows: Array | slice  # (B,), the row of each text's position 0
    attended: Array | None = (
        None  # (T,) bool: whether the row is a token or padding; None: all are tokens, or a mask does not say
    )
    bias: Array | None = None  # (B, 1, 1 or S, Sk)
    shown: Array | None = None  # (B, S) bool: of the rows, the outputs elsewhere are 0; None: of no row

    def pack(self, x: Array) -> Array:  # (B, S, ...) -> (T, ...)
        x = x.reshape(-1, *x.shape[2:])
        return x if self.places is None else x[self.places]

    def unpack(self, x: Array) -> Array:  # (T, ...) -> (B, S, ...)
        if self.places is not None:
            whole = np.zeros_like(x, shape=(self.shape[0] * self.shape[1], *x.shape[1:]))
            whole[self.places] = x
            x = whole
        x = x.reshape(*self.shape, *x.shape[1:])
        if self.shown is not None:
            x = x.copy()  # the rows are still the encoder's
            x[~self.shown] = 0
        return x

    def unpack_probabilities(self, probabilities: list[Array], keys: int | None = None) -> Array:
        """B x (H, Sq, Sk) -> (B, H, S, keys): the keys are this call's own positions, or `keys` of another model's."""
        B, S = self.shape
        own = keys is None and self.places is not None
        keys = keys or (S if own else probabilities[0].shape[2])
        whole = np.zeros_like(probabilities[0], shape=(B, probabilities[0].shape[0], S, keys))
        for b, p in enumerate(probabilities):
            if self.places is None:
                whole[b] = p
            else:
                rows = self.places[self.sequences.query_start[b] : self.sequences.query_start[b + 1]] - b * S
                columns = rows[: p.shape[2]] if own else np.arange(keys)  # a text's tokens come first, and are its keys
                whole[b][:, rows[:, None], columns] = p
        if self.shown is not None:
            whole.transpose(0, 2, 1, 3)[~self.shown] = 0
        return whole

    def take(self, x: Array, places: Array) -> Array:  # (T, D) -> (B, K, D), or (K, D)
        """What logits_to_keep asks for: places of (B, S), as `take_places`."""
        return take_places(self.unpack(x), places)

    def first(self, x: Array) -> Array:  # (T, D) -> (B, D)
        """The rows of every text's position 0, padding or not, as Hugging Face's heads read it."""
        return x[self.first_rows]


class Ragged(Rows):
    """The rows of texts of any lengths; unpacked they are the texts' tokens one after another, (T, ...), with no padding."""

    def unpack(self, x: Array) -> Array:
        return x if self.attended is None else x[self.attended]

    def take(self, x: Array, places: Array) -> Array:  # (T, D) -> (K, D)
        return self.unpack(x)[places]


def arrange(
    mask: Array | None, shape: tuple[int, int], past: int | None, *, causal: bool, whole: bool, skip: bool, dtype: Any
) -> Rows:
    """Choose the rows of a call: mask (B, past + S), (B, Sq, Sk) or None; `past` None where no cache is in use.

    `whole` asks for every position as a row, `skip` for outputs of 0 at padding. Raises Error on a mask of another shape.
    """
    (B, S), cached, past = shape, past is not None, past or 0
    every = Rows(shape, None, even(B, S, past + S, causal, cached), slice(0, None, S))
    if mask is None:
        return every
    allowed = [(B, past + S), (1, past + S), (B, S, past + S), (1, S, past + S)]
    if mask.shape not in allowed:
        raise Error(f"attention_mask has shape {mask.shape}; it must be {allowed[0]} or {allowed[2]}")
    mask = np.broadcast_to(mask, (B, *mask.shape[1:]))
    binary = mask.ndim == 2 and bool(((mask == 0) | (mask == 1)).all())
    if binary and bool((mask == 1).all()):
        return every
    attended = mask == 1
    packs = binary and skip and bool(attended.any(1).all())
    if packs and not whole and not cached and (not causal or bool(attended[:, 0].all())):
        return _packed(attended, causal)
    shown = None
    if packs:
        shown = attended[:, past:].copy()
        shown[:, 0] = True
    tokens = (mask[:, past:] != 0).ravel() if mask.ndim == 2 else None
    bias = additive(mask, S, causal, dtype)
    return Rows(shape, None, even(B, S, past + S, False, cached), slice(0, None, S), tokens, bias, shown)


def even(B: int, queries: int, keys: int, causal: bool, cached: bool) -> Sequences:
    """Sequences of one length; in a cache every sequence's keys start at 0."""
    starts = np.arange(B + 1, dtype=np.int32)
    return Sequences(
        starts * np.int32(queries), starts[:-1] * np.int32(0 if cached else keys), np.full(B, keys, np.int32), causal
    )


def _packed(attended: Array, causal: bool) -> Rows:
    """The attended tokens as rows, text by text.

    Heads read a text's position 0. Where that is padding, Hugging Face still computes it: it reads the text's tokens, and none of
    them reads it. So it is a row too. It stands behind the text's tokens, since a text's keys are its first `key_length` rows.
    """
    B, S = attended.shape
    padded = ~attended[:, 0]
    lengths = attended.sum(1, dtype=np.int32)
    places = np.flatnonzero(attended)
    starts = _starts(lengths + padded)
    first_rows, tokens = starts[:-1], None
    if padded.any():
        ends = lengths.cumsum()[padded]
        places = np.insert(places, ends, np.flatnonzero(padded) * S)
        tokens = np.insert(np.ones(lengths.sum(), bool), ends, False)
        first_rows = np.where(padded, starts[1:] - 1, first_rows)
    return Rows((B, S), places, Sequences(starts, starts[:-1], lengths, causal), first_rows, tokens)


def ragged(lengths: Array, causal: bool) -> Rows:
    """The rows of texts that stand packed already, (B,) lengths: those of the texts padded on the right, and their mask."""
    B, S = len(lengths), int(lengths.max())
    if bool((lengths == S).all()):
        return Rows((B, S), None, even(B, S, S, causal, False), slice(0, None, S))
    starts = _starts(lengths)
    places = np.arange(starts[-1]) + np.repeat(np.arange(B) * S - starts[:-1], lengths)
    return Rows((B, S), places, Sequences(starts, starts[:-1], lengths.astype(np.int32), causal), starts[:-1])


def _starts(lengths: Array) -> Array:  # (B,) -> (B + 1,) int32
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


def additive(mask: Array, queries: int, causal: bool, dtype: Any) -> Array:  # (B, Sk) or (B, Sq, Sk) -> (B, 1, 1 or Sq, Sk)
    """(1 - mask) * the dtype's least number, as transformers' get_extended_attention_mask; a 3-D mask is taken as it is."""
    if mask.ndim == 3:
        mask = mask[:, None]
    elif causal:
        keys = mask.shape[1]
        seen = np.arange(keys) <= np.arange(keys - queries, keys)[:, None]
        mask = mask[:, None, None] * seen
    else:
        mask = mask[:, None, None]
    with np.errstate(over="ignore"):
        bias: Array = (1 - mask.astype(dtype)) * np.finfo(dtype).min
    return bias


def on_gpu(x: Any) -> bool:
    """Whether an array is a GPU's, which NumPy's functions take but np.asarray does not; torch's tensors go by the host."""
    return not is_torch(x) and hasattr(x, "__cuda_array_interface__")


def is_torch(x: Any) -> bool:
    """Whether a thing is a torch.Tensor, seen without torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(x).__mro__)


def as_array(x: Any, name: str) -> Array:
    """What a caller gave, as an array of the host; raises Error on what cannot be one.

    Of a torch tensor its numbers are taken, wherever it lies and whether or not it is sparse or has gradients.
    """
    try:
        return np.asarray(_host(x, name))
    except Error:
        raise
    except (ValueError, TypeError, OverflowError, RuntimeError, AttributeError) as error:
        told = "it is ragged (its rows differ in length)" if _ragged(x) else str(error).partition("\n")[0]
        raise Error(f"{name} is no array of numbers: {told}") from error


def _host(x: Any, name: str) -> Any:
    """What np.asarray takes, of an array of a GPU, a torch tensor, or a list of either."""
    if isinstance(x, list | tuple):  # the first of a list stands for all: looking at every number of long lists takes long
        return [_host(part, name) for part in x] if x and (is_torch(x[0]) or isinstance(x[0], list | tuple)) else x
    if not is_torch(x):
        return x.get() if on_gpu(x) and hasattr(x, "get") else x
    if x.is_meta:
        raise Error(f"{name} is a torch tensor on the device meta, which holds no numbers: give one of a real device")
    if x.is_nested:
        raise Error(f"{name} is a nested torch tensor, whose rows differ in length: torch.nested.to_padded_tensor pads them")
    x = x.detach()
    x = x if str(x.layout) == "torch.strided" else x.to_dense()
    exact = x.float() if "float8" in str(x.dtype) or str(x.dtype) == "torch.bfloat16" else x  # NumPy lacks these
    return exact.numpy(force=True)


def _ragged(x: Any) -> bool:
    """Whether lists in a list differ in length, or are beside what is none."""
    if not isinstance(x, list | tuple):
        return False
    lengths = {len(part) if hasattr(part, "__len__") and not isinstance(part, str) else None for part in x}
    return len(lengths) > 1 or any(_ragged(part) for part in x)


def check_integers(x: Any, name: str) -> Array:
    """An array of integers, as int64; raises Error on anything else."""
    array = as_array(x, name)
    if array.dtype.kind not in "iu":
        raise Error(f"{name} has dtype {array.dtype}; it must hold integers")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise RangeError(f"{name} holds {array.max()}, which is past every table")
    return array.astype(np.int64, copy=False)


def check_ids(x: Any, name: str, size: int) -> Array:
    """Integer ids, (B, S) int64, each at least 0 and below `size`; raises Error, or RangeError for an id out of range."""
    if x is None:
        raise Error(f"{name} is missing: give token ids, (batch, tokens)")
    ids = check_integers(x, name)
    if ids.ndim != 2:
        raise Error(f"{name} has shape {ids.shape}; it must be (batch, tokens)")
    check_range(ids, name, size)
    return ids


def check_range(ids: Array, name: str, size: int) -> None:
    """Raise RangeError where an id is negative or not below `size`."""
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise RangeError(f"{name} holds {wrong}; this model allows 0 to {size - 1}")


def check_texts(texts: Sequence[Any], size: int, name: str = "input_ids") -> tuple[Array, Array]:
    """The ids of texts of any lengths, one after another, (T,) int64, and their lengths, (B,); raises Error as check_ids."""
    lengths = np.array([len(text) for text in texts])
    if not lengths.all() or not len(lengths):
        raise Error(f"the texts have {lengths.tolist()} tokens; there must be at least one text, and one token in each")
    if all(type(text) is list for text in texts) and set(map(type, chain(*texts))) == {int}:  # one array: many take long
        ids = check_integers(list(chain(*texts)), "a text")
    else:
        rows = [check_integers(text, f"text {b}") for b, text in enumerate(texts)]
        if wrong := [b for b, row in enumerate(rows) if row.ndim != 1]:
            raise Error(f"text {wrong[0]} has shape {rows[wrong[0]].shape}; it must be (tokens,)")
        ids = np.concatenate(rows)
    check_range(ids, name, size)
    return ids, lengths


def position_ids_of(
    given: Any, ids: Array | None, shape: tuple[int, int], past: int, config: RobertaPreLayerNormConfig
) -> Array:  # -> (B, S)
    """Each token's position: pad_token_id + 1 for the first token that is not padding, and so on; padding has pad_token_id.

    Mirrors create_position_ids_from_input_ids, and create_position_ids_from_inputs_embeds (which ignores a cache) where there are
    no ids. Raises RangeError where a text is too long.
    """
    absolute = config.position_embedding_type == "absolute"
    if given is not None:
        positions = check_integers(given, "position_ids")
        if positions.shape not in (shape, (1, shape[1]), (shape[1],)):
            raise Error(f"position_ids has shape {positions.shape}; it must be {shape}")
        if absolute:
            check_range(positions, "position_ids", config.max_position_embeddings)
        spread: Array = np.broadcast_to(positions, shape)
        return spread
    pad = _pad_token(config)
    real = None if ids is None else ids != pad
    if real is None or real.all():
        start = pad + 1 + (0 if real is None else past)
        positions = np.broadcast_to(np.arange(start, start + shape[1]), shape)
    else:
        positions = (np.cumsum(real, 1) + past) * real + pad
    return _within_reach(positions, pad, config)


def packed_position_ids(ids: Array, lengths: Array, config: RobertaPreLayerNormConfig) -> Array:  # (T,), (B,) -> (T,)
    """The same for texts that stand packed."""
    pad = _pad_token(config)
    real = ids != pad
    count = np.concatenate([[0], real.cumsum()])  # real tokens before each row, of all texts
    before = np.repeat(count[_starts(lengths)[:-1]], lengths)
    return _within_reach((count[1:] - before) * real + pad, pad, config)


def _pad_token(config: RobertaPreLayerNormConfig) -> int:
    if config.pad_token_id is None:
        raise Error("config.pad_token_id is None, so positions cannot be counted: give position_ids")
    return config.pad_token_id


def _within_reach(positions: Array, pad: int, config: RobertaPreLayerNormConfig) -> Array:
    absolute = config.position_embedding_type == "absolute"
    if absolute and positions.size and positions.max() >= config.max_position_embeddings:
        longest = int(positions.max()) - pad
        raise RangeError(f"a text has {longest} tokens; this model reads at most {config.usable_length}: cut or split the text")
    return positions


def check_numbers(x: Any, name: str) -> Array:
    """An array of booleans or real numbers; raises Error on anything else."""
    array = as_array(x, name)
    if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
        raise Error(f"{name} has dtype {array.dtype}; it must hold numbers")
    return array


def kept_layers(asked: Any, default: bool, count: int) -> set[int]:
    """Which of `count` hidden states a call keeps: all, none, or those that a list names (transformers 5).

    Raises Error on anything else.
    """
    asked = default if asked is None else asked
    if isinstance(asked, bool | np.bool_) or (isinstance(asked, int) and asked in (0, 1)):
        return set(range(count)) if asked else set()
    named = check_integers(asked, "output_hidden_states")
    if named.ndim != 1 or (named.size and not -count <= named.min() <= named.max() < count):
        raise Error(f"output_hidden_states is {asked!r}; it must be true, false or a list of 0 to {count - 1}")
    return set((named % count).tolist())


def check_vectors(x: Any, name: str, width: int, dtype: Any) -> Array:
    """Vectors (B, S, width) in a dtype, on the GPU if they were; raises Error on another shape."""
    array = x if on_gpu(x) else check_numbers(x, name)
    if array.ndim != 3 or array.shape[2] != width:
        raise Error(f"{name} has shape {array.shape}; it must be (batch, tokens, {width})")
    return array.astype(dtype, copy=False)


def take_places(x: Array, places: Array) -> Array:  # (B, S, D) -> (B, K, D), or (K, D)
    """The last k places of every row, given k; or these, (K,); or of each row, (B, K); or, flat, where a (B, S) mask is true.

    Mirrors logits_to_keep in transformers 5. Raises Error on anything else.
    """
    B, S = x.shape[:2]
    if places.ndim == 0 and places.dtype.kind in "iu" and places >= 0:
        return x[:, S - min(S, int(places)) :]
    if places.dtype == bool and places.shape == (B, S):
        return x[places]
    if places.dtype.kind in "iu" and (places.ndim == 1 or (places.ndim == 2 and len(places) == B)):
        if places.size and not -S <= places.min() <= places.max() < S:
            raise RangeError(f"logits_to_keep names places {places.min()} to {places.max()} of {S}")
        return x[:, places] if places.ndim == 1 else x[np.arange(B)[:, None], places]
    raise Error(f"logits_to_keep must be a count, places (K,) or ({B}, K), or a mask {(B, S)} of booleans")

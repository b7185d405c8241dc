"""Text from a causal language model, a token at a time: greedy, sampled, or the best of several beams.

Mirrors transformers' GenerationMixin (5.23.0) but for positions: here they are those of one forward pass over the whole text,
from pad_token_id + 1 on and not counting pad tokens; transformers' generate starts them at 0 (first_position=0 does so too).

Shapes: R rows, one for each sequence under way (prompts x beams or samples), L tokens so far, V words.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .backends import Array, Backend
from .backends.numpy import softmax
from .cache import Cache
from .errors import Error, ieee
from .inputs import check_ids, check_integers, check_numbers, check_range, on_gpu
from .losses import log_softmax
from .outputs import GenerateOutput

LEAST = -1.0e9  # stands for a beam that may not be chosen


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen; names, defaults and order of application are transformers'."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("repetition_penalty", "temperature", "length_penalty", "top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if not _is_number(value) and not (name == "min_p" and value is None):
                raise Error(f"{name} is {value!r}; it must be a number")
            if name in ("repetition_penalty", "temperature") and not value > 0:
                raise Error(f"{name} is {value}; it must be above 0")
            if name in ("top_p", "min_p", "typical_p") and value is not None and not 0 <= value <= 1:
                raise Error(f"{name} is {value}; it must be from 0 to 1")
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens", "top_k"):
            check_count(name, getattr(self, name), 0)
        for name in ("num_beams", "num_return_sequences"):
            check_count(name, getattr(self, name), 1)
        if not isinstance(self.do_sample, bool | np.bool_):
            raise Error(f"do_sample is {self.do_sample!r}; it must be true or false")
        if self.early_stopping not in (True, False, "never"):
            raise Error(f'early_stopping is {self.early_stopping!r}; it must be True, False or "never"')
        words = self.bad_words_ids
        if not isinstance(words, Sequence) or any(not isinstance(word, Sequence) or not word for word in words):
            raise Error(
                f"bad_words_ids is {words!r}; it must be a list of words, each a list of at least one id, none of them empty"
            )
        if self.num_return_sequences > self.num_beams > 1:
            raise Error(f"num_return_sequences is {self.num_return_sequences}, of only {self.num_beams} beams")
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.do_sample:
            raise Error("greedy search finds one sequence: for num_return_sequences above 1 set do_sample or num_beams")

    @property
    def min_tokens_to_keep(self) -> int:
        """How many words sampling must leave possible."""
        return 1 if self.num_beams == 1 else max(2, len(self.eos_token_ids) + 1)


STARTS = ("decoder_start_token_id", "bos_token_id")  # the first of them that is there begins what an encoder-decoder says
LENGTHS = {
    "max_length": "max_new_tokens",
    "max_new_tokens": "max_length",
    "min_length": "min_new_tokens",
    "min_new_tokens": "min_length",
}
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
KEPT = {  # a checkpoint's settings that are followed, and what transformers does where there is none
    **{name: entry.default for name, entry in Choice.__dataclass_fields__.items() if name != "eos_token_ids"},
    **dict.fromkeys(("max_new_tokens", "pad_token_id", "eos_token_id", "stop_strings", *STARTS)),
    "max_length": 20,
    "use_cache": True,
    "return_dict_in_generate": False,
}
REFUSED: dict[str, Any] = {  # those that change what is generated and are not done here, and the value at which they do nothing
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "guidance_scale": 1,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    **dict.fromkeys(
        ("top_h", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
         "exponential_decay_length_penalty", "force_words_ids", "constraints", "penalty_alpha", "max_time",
         "watermarking_config", "dola_layers")
    ),
}  # fmt: skip


def settings(stored: Mapping[str, Any] | None, given: Mapping[str, Any], *configs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate`: those given, then the checkpoint's own; mirrors transformers' GenerationConfig.

    `stored` is generation_config.json. Without it the configurations say it, a later one before an earlier where it differs from
    transformers' default (GenerationConfig.from_model_config). A length that is given stands before either length of a
    checkpoint (transformers lets the checkpoint's max_new_tokens win over a max_length that is given); None is not given. What
    steers sampling is taken from a checkpoint only where there is sampling. Raises Error on a setting that is not done here.
    """
    own: dict[str, Any] = {}
    for content in configs if stored is None else (stored,):
        for name, value in content.items():
            known = KEPT | REFUSED
            if name in known and value is not None and (stored is not None or name not in own or value != known[name]):
                own[name] = value
    given = {name: value for name, value in given.items() if value is not None or KEPT.get(name, ...) not in (None, 20)}
    own = {name: value for name, value in own.items() if LENGTHS.get(name) not in given}
    if "min_new_tokens" in own:
        own.pop("min_length", None)
    if stored is not None:  # where it names none, no token ends a text and the first that does is padding
        ends = given.get("eos_token_id", own.setdefault("eos_token_id", ()))
        if "pad_token_id" not in own and np.size(ends):
            own["pad_token_id"] = np.ravel(ends)[0]
    if not given.get("do_sample", own.get("do_sample", False)):
        own = {name: value for name, value in own.items() if name not in OF_SAMPLING}
    merged = own | given
    for name, nothing in REFUSED.items():
        value = merged.pop(name, None)
        if value is not None and np.size(value) and (np.ndim(value) or value != nothing):
            where = "" if name in given else "the checkpoint's generation settings say "
            raise Error(
                f"{where}{name} is {value!r}, which this version does not do: generate({name}={nothing!r}) goes without it"
            )
    return merged


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and not math.isnan(value)


def check_count(name: str, value: object, least: int) -> None:
    """Raise Error where a value is not a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise Error(f"{name} is {value!r}; it must be a whole number of at least {least}")


# What a choice makes of scores: each takes (R, V) and returns (R, V), a word that is out at -inf.


def penalise(ids: Array, scores: Array, choice: Choice, prompt: int) -> Array:  # ids (R, L), scores (R, V)
    """Everything that steers both greedy and sampled choice: repetition, n-grams, bad words, least lengths."""
    scores = scores.copy()
    if choice.repetition_penalty != 1:
        seen = np.take_along_axis(scores, ids, 1)
        penalised = np.where(seen < 0, seen * choice.repetition_penalty, seen / choice.repetition_penalty)
        np.put_along_axis(scores, ids, penalised, 1)
    if choice.no_repeat_ngram_size and ids.shape[1] + 1 >= choice.no_repeat_ngram_size:
        for row, banned in enumerate(_completing(ids, choice.no_repeat_ngram_size)):
            scores[row, banned] = -math.inf
    for word in choice.bad_words_ids:
        *start, last = word
        if not start:
            if last not in choice.eos_token_ids:
                scores[:, last] = -math.inf
        elif len(word) <= ids.shape[1]:
            scores[(ids[:, ids.shape[1] - len(start) :] == start).all(1), last] = -math.inf
    if ids.shape[1] < max(choice.min_length, prompt + choice.min_new_tokens):
        scores[:, list(choice.eos_token_ids)] = -math.inf
    if (scores == -math.inf).all(1).any():
        raise Error("no token is left to choose: bad_words_ids, no_repeat_ngram_size and the least lengths rule out all of them")
    return scores


def _completing(ids: Array, n: int) -> list[Array]:
    """For each row the tokens that would complete an n-gram the row already holds."""
    if ids.shape[1] < n:
        return [np.array([], np.int64)] * len(ids)
    grams = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1)  # (R, L - n + 1, n)
    begun = (grams[:, :, :-1] == ids[:, None, ids.shape[1] - n + 1 :]).all(2)
    return [gram[match, -1] for gram, match in zip(grams, begun, strict=True)]


def narrow(scores: Array, choice: Choice) -> Array:  # (R, V)
    """What only sampling applies: temperature, then top-k, top-p, min-p and typical words."""
    keep = choice.min_tokens_to_keep
    if choice.temperature != 1:
        scores = scores / choice.temperature
    if choice.top_k:
        k = min(max(choice.top_k, keep), scores.shape[1])
        least = np.partition(scores, -k, 1)[:, -k, None]
        scores = np.where(scores < least, -math.inf, scores)
    if choice.top_p < 1:
        order = np.argsort(scores, 1, kind="stable")
        below = np.cumsum(softmax(np.take_along_axis(scores, order, 1)), 1) <= 1 - choice.top_p
        scores = _without(scores, order, below, keep)
    if choice.min_p is not None:
        p = softmax(scores)
        order = np.argsort(scores, 1, kind="stable")
        below = np.take_along_axis(p < choice.min_p * p.max(1, keepdims=True), order, 1)
        scores = _without(scores, order, below, keep)
    if choice.typical_p < 1:  # Meister et al. 2022
        log_p = log_softmax(scores)
        p = np.exp(log_p)
        entropy = -(np.where(p > 0, log_p, 0) * p).sum(1, keepdims=True)
        distance = np.abs(-log_p - entropy)
        order = np.argsort(distance, 1, kind="stable")
        mass = np.cumsum(np.take_along_axis(p, order, 1), 1)
        last = np.minimum((mass < choice.typical_p).sum(1, keepdims=True), scores.shape[1] - 1)
        limit = np.take_along_axis(np.take_along_axis(distance, order, 1), last, 1)
        far = np.take_along_axis(distance, order, 1) > limit
        scores = _without(scores, order[:, ::-1], far[:, ::-1], keep)
    return scores


def _without(scores: Array, order: Array, out: Array, keep: int) -> Array:
    """Scores without the words at `out` along `order`, worst first, but for the last `keep` of that order."""
    out = out.copy()
    out[:, out.shape[1] - keep :] = False
    scores = scores.copy()
    np.put_along_axis(scores, order, np.where(out, -math.inf, np.take_along_axis(scores, order, 1)), 1)
    return scores


class CausalLM(Protocol):
    """What generation asks of a model: RobertaPreLayerNormForCausalLM."""

    config: Any

    @property
    def ops(self) -> Backend: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass
class Rows:
    """The sequences under way: their tokens, what of them is padding, and the model's cache of them."""

    model: CausalLM
    ids: Array  # (R, capacity), `length` of them in use
    mask: Array  # (R, capacity)
    length: int
    first_position: int | None
    use_cache: bool
    constants: dict[str, Any] = field(default_factory=dict)  # encoder_hidden_states and their mask, (R, ...)
    cache: Cache | None = None

    def scores(self) -> Array:  # -> (R, V) float64
        """The model's scores for the next token of every row."""
        done = 0 if self.cache is None else self.cache.length
        mask, pad = self.mask[:, : self.length], self.model.config.pad_token_id
        counted = mask == 1
        first = self.first_position
        if first is None:
            counted, first = counted & (self.ids[:, : self.length] != pad), (pad or 0) + 1
        positions = np.where(counted, np.cumsum(counted, 1) - 1 + first, pad or 0)[:, done:]
        output = self.model(
            self.ids[:, done : self.length],
            attention_mask=None if mask.all() else mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
            return_dict=True,
            output_attentions=False,
            output_hidden_states=False,
            **self.constants,
        )
        self.cache = output.past_key_values
        return np.asarray(self.model.ops.to_numpy(output.logits))[:, -1].astype(np.float64)

    def append(self, tokens: Array) -> None:
        """One more token for every row."""
        self.ids[:, self.length], self.mask[:, self.length] = tokens, 1
        self.length += 1

    def select(self, rows: Array) -> None:
        """Go on from these rows."""
        self.ids = self.ids[rows]
        if self.cache is not None:
            self.cache.select(rows)


class Begun(NamedTuple):
    """The prompts (B, S) as they were given, their rows, and how these go on."""

    given: Array
    rows: Rows
    choice: Choice
    total: int  # the most tokens of a row, its prompt's included
    pad: int
    ended: Callable[[Array], Array]  # (R, L) -> (R,) of booleans
    random: np.random.Generator


@ieee
def generate(
    model: CausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    streamer: Callable[[Array], object] | None = None,
    return_dict_in_generate: bool = False,
    **arguments: Any,
) -> Any:
    """Prompts (B, S), padded on either side -> (B x num_return_sequences, L) ids: the prompts as given, then what follows.

    `streamer` is called with each step's tokens (R,). The other arguments are those of `begin`. With return_dict_in_generate: a
    GenerateOutput with the scores too. Raises Error as `begin`, and on a streamer for beams.
    """
    begun = begin(model, input_ids, attention_mask, **arguments)
    if streamer is not None and not callable(streamer):
        raise Error(f"streamer is {streamer!r}; it must be a function of each step's tokens")
    if begun.choice.num_beams > 1:
        if streamer is not None:
            raise Error(NO_STREAM)
        sequences, scores, best = _beam_search(begun)
    else:
        scores, best = [], None
        for tokens, step in _token_by_token(begun):
            scores.append(step)
            if streamer is not None:
                streamer(tokens)
        sequences = begun.rows.ids[:, : begun.rows.length]
    prompts = np.repeat(begun.given, begun.choice.num_return_sequences, 0)
    sequences = np.concatenate([prompts, sequences[:, begun.given.shape[1] :]], 1)
    return GenerateOutput(sequences, tuple(scores), best) if return_dict_in_generate else sequences


def stream(model: CausalLM, input_ids: Any, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
    """The tokens (R,) that `generate` appends, a step each, as they are asked for; arguments and errors are those of `begin`."""
    begun = ieee(begin)(model, input_ids, attention_mask, **arguments)
    if begun.choice.num_beams > 1:
        raise Error(NO_STREAM)
    steps = _token_by_token(begun)
    return (step[0] for step in iter(ieee(lambda: next(steps, None)), None))


NO_STREAM = "a streamer cannot follow beams: the best one is known at the end"


def begin(
    model: CausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Any = None,
    seed: int | None = None,
    first_position: int | None = None,
    use_cache: bool = True,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
    **choice: Any,
) -> Begun:
    """What `generate` and `stream` are given, checked: prompts (B, S), padded on either side, and how they are to go on.

    A text stops where every sequence has ended by an eos token or one of `stop_strings` (which need a tokenizer), or at
    max_length (20, prompt included) or max_new_tokens. A sequence that ended goes on with padding. The other arguments are the
    fields of Choice. Raises Error on arguments that cannot be, and where the positions do not reach.
    """
    config = model.config
    ends = ends_of(config.eos_token_id if eos_token_id is None else eos_token_id, config.vocab_size)
    unknown = set(choice) - set(Choice.__dataclass_fields__) | set(choice) & {"eos_token_ids"}
    if unknown:
        raise Error(f"generate does not know {', '.join(sorted(unknown))}")
    chosen = Choice(**choice, eos_token_ids=ends)
    for word in chosen.bad_words_ids:
        check_range(check_integers(word, "bad_words_ids"), "bad_words_ids", config.vocab_size)
    if pad_token_id is not None:
        check_range(check_integers(pad_token_id, "pad_token_id"), "pad_token_id", config.vocab_size)
    pad = next((token for token in (pad_token_id, config.pad_token_id, *ends) if token is not None), 0)
    given = check_ids(input_ids, "input_ids", config.vocab_size)
    if given.size == 0:
        raise Error(f"the prompts have shape {given.shape}; there must be at least one prompt of one token")
    ids, mask = _left_padded(given, attention_mask, pad, ends)
    B, S = ids.shape
    total = _total(S, max_length, max_new_tokens)
    if first_position is not None:
        check_count("first_position", first_position, 0)
    first = first_position if first_position is not None else (config.pad_token_id or 0) + 1
    reached = first + int(mask.sum(1).max()) + total - S - 2
    if config.position_embedding_type != "absolute" and total - 1 > config.max_position_embeddings:
        raise Error(f"{total} tokens; this model's relative positions reach {config.max_position_embeddings}")
    if config.position_embedding_type == "absolute" and reached >= config.max_position_embeddings:
        raise Error(
            f"{total} tokens need position {reached}; this model has positions up to {config.max_position_embeddings - 1}"
        )
    stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise Error(f"stop_strings is {stop_strings!r}; it must be a string or several, none of them empty")
    if stops and not hasattr(tokenizer, "decode"):
        raise Error("stop_strings need a tokenizer that decodes")
    copies = chosen.num_beams if chosen.num_beams > 1 else chosen.num_return_sequences
    constants = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
    constants = {name: _for_rows(value, name, B, copies) for name, value in constants.items() if value is not None}
    room = ((0, 0), (0, total - S))
    rows = Rows(
        model,
        np.pad(np.repeat(ids, copies, 0), room, constant_values=pad),
        np.pad(np.repeat(mask, copies, 0), room),
        S,
        first_position,
        bool(use_cache and config.is_decoder),
        constants,
    )

    def ended(sequences: Array) -> Array:  # (R, L) -> (R,) bool
        found = np.isin(sequences[:, -1], ends)
        return found | np.array([_says(row, stops, tokenizer) for row in sequences], bool) if stops else found

    return Begun(given, rows, chosen, total, pad, ended, np.random.default_rng(seed))


def _for_rows(value: Any, name: str, B: int, copies: int) -> Array:
    """What belongs to each prompt, or to all of them, (B or 1, ...) -> (B x copies, ...)."""
    value = value if on_gpu(value) else check_numbers(value, name)
    if value.ndim == 0 or len(value) not in (1, B):
        raise Error(f"{name} has shape {value.shape}; it must be for a batch of {B}")
    return np.repeat(np.broadcast_to(value, (B, *value.shape[1:])), copies, 0)


def _total(prompt: int, max_length: int | None, max_new_tokens: int | None) -> int:
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens, 1)
        return prompt + max_new_tokens
    total = 20 if max_length is None else max_length
    check_count("max_length", total, 1)
    if total <= prompt:
        raise Error(f"the prompt has {prompt} tokens and max_length is {total}: give a larger max_length, or max_new_tokens")
    return total


def ends_of(eos: Any, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end a text, of those given the ones that a vocabulary has; raises Error on what is no integers."""
    tokens = () if eos is None or np.size(eos) == 0 else np.ravel(check_integers(eos, "eos_token_id")).tolist()
    return tuple(token for token in tokens if 0 <= token < vocab_size)


def padding_mask(ids: Array, pad: int | None, ends: tuple[int, ...]) -> Array | None:  # (B, S)
    """Where no mask is given: 0 at every pad token, unless it also ends texts or there is none (then None)."""
    return None if pad is None or pad in ends or not bool((ids == pad).any()) else (ids != pad).astype(np.int64)


def _left_padded(ids: Array, mask: Any, pad: int, ends: tuple[int, ...]) -> tuple[Array, Array]:
    """The prompts with all their padding on the left; without a mask, padding is every pad token (unless it also ends texts)."""
    mask = padding_mask(ids, pad, ends) if mask is None else mask
    mask = np.ones_like(ids) if mask is None else check_numbers(mask, "attention_mask")
    if mask.shape != ids.shape or not ((mask == 0) | (mask == 1)).all():
        raise Error(f"attention_mask must hold 0 and 1 in the prompts' shape {ids.shape}; this one has shape {mask.shape}")
    if not (mask == 1).any(1).all():
        raise Error("a prompt is nothing but padding")
    order = np.argsort(mask == 1, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1).astype(np.int64)


def _says(row: Array, stops: Sequence[str], tokenizer: Any) -> bool:
    """Whether the last token completes one of the strings; a token is at least a byte, so only so many can matter."""
    tail = row[-max(len(stop.encode()) for stop in stops) - 1 :].tolist()
    text, before = tokenizer.decode(tail), tokenizer.decode(tail[:-1])
    return any(text.count(stop) > before.count(stop) for stop in stops)


def _token_by_token(begun: Begun) -> Iterator[tuple[Array, Array]]:
    """Greedy search, or sampling from what `narrow` leaves: each step's tokens (R,), and the scores (R, V) they are chosen by."""
    _, rows, choice, total, pad, ended, random = begun
    prompt, over = rows.length, np.zeros(len(rows.ids), bool)
    while rows.length < total and not over.all():
        scores = penalise(rows.ids[:, : rows.length], rows.scores(), choice, prompt)
        if choice.do_sample:
            scores = narrow(scores, choice)
            tokens = _draw(softmax(scores), random)
        else:
            tokens = scores.argmax(1)
        rows.append(np.where(over, pad, tokens))
        over |= ended(rows.ids[:, : rows.length])
        yield rows.ids[:, rows.length - 1].copy(), scores


def _draw(p: Array, random: np.random.Generator) -> Array:  # (R, V) -> (R,)
    """One word a row, by where a uniform number falls among the summed probabilities."""
    sums = np.cumsum(p, 1)
    thresholds = random.random((len(p), 1)) * sums[:, -1:]
    return (sums <= thresholds).sum(1)


def _beam_search(begun: Begun) -> tuple[Array, list[Array], Array]:
    """Keep the num_beams likeliest beginnings of each prompt, and the best of those that ended by score / length ** penalty.

    As transformers counts: a step looks at (1 + number of eos tokens, at least 2) continuations for each beam, so that enough
    are left to go on with; only the best num_beams of them may count as ended.
    """
    _, rows, choice, total, pad, ended, random = begun
    n, prompt = choice.num_beams, rows.length
    B = len(rows.ids) // n
    width = min(max(2, 1 + len(choice.eos_token_ids)), rows.model.config.vocab_size) * n
    running = np.full((B, n), LEAST)
    running[:, 0] = 0
    finished: list[list[tuple[float, Array]]] = [[] for _ in range(B)]
    over, kept = np.zeros(B, bool), []
    while rows.length < total and not over.all():
        scores = penalise(rows.ids[:, : rows.length], log_softmax(rows.scores()), choice, prompt)
        if choice.do_sample:
            scores = narrow(scores, choice)
        kept.append(scores)
        V = scores.shape[1]
        summed = (scores.reshape(B, n, V) + running[:, :, None]).reshape(B, n * V)
        keys = (
            summed + random.gumbel(size=summed.shape) if choice.do_sample else summed
        )  # the largest: a draw without replacement
        top = np.argsort(-keys, 1, kind="stable")[:, :width]
        log_p = np.take_along_axis(summed, top, 1)
        parents, tokens = top // V + np.arange(B)[:, None] * n, top % V
        candidates = np.concatenate([rows.ids[parents.ravel(), : rows.length], tokens.reshape(-1, 1)], 1)
        stopped = ended(candidates).reshape(B, width) | (rows.length + 1 == total)

        length = rows.length + 1 - prompt
        for b in np.flatnonzero(~over):
            full = choice.early_stopping is True and len(finished[b]) == n
            for place in () if full else np.flatnonzero(stopped[b, :n]):
                finished[b].append((log_p[b, place] / length**choice.length_penalty, candidates[b * width + place]))
            finished[b] = sorted(finished[b], key=lambda entry: -entry[0])[:n]

        alive = log_p + np.where(stopped, LEAST, 0)
        best = np.argsort(-alive, 1, kind="stable")[:, :n]
        running = np.take_along_axis(alive, best, 1)
        rows.select(np.take_along_axis(parents, best, 1).ravel())
        rows.append(np.take_along_axis(tokens, best, 1).ravel())

        hoped = total - prompt if choice.early_stopping == "never" and choice.length_penalty > 0 else length
        possible = running[:, 0] / hoped**choice.length_penalty
        for row, entries in enumerate(finished):
            if len(entries) == n:
                over[row] |= choice.early_stopping is True or not possible[row] > entries[-1][0]

    wanted = [entry for entries in finished for entry in entries[: choice.num_return_sequences]]
    longest = max(len(sequence) for _, sequence in wanted)
    sequences = np.full((len(wanted), longest), pad, np.int64)
    for row, (_, sequence) in enumerate(wanted):
        sequences[row, : len(sequence)] = sequence
    return sequences, kept, np.array([score for score, _ in wanted])

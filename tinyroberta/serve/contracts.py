"""What each route asks for: a request's JSON -> a Plan, which says what the model computes and how the answer is written.

The contracts are text-embeddings-inference's (1.9) and, for /v1/embeddings, OpenAI's. A Plan is made in a thread other than
the model's.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Error, ieee
from ..tasks import bge_m3
from ..tasks.classify import applied, labels_of
from ..tasks.embed import Embedder, similarity
from ..tasks.tokenizer import decode
from .kinds import Served, TooLong, encoded
from .packing import Job

STATUS = {"Empty": 400, "Validation": 413, "Tokenizer": 422, "Backend": 424, "Overloaded": 429, "Unhealthy": 503}
NUMBERS = 1 << 23  # of an answer of /embed_all
Body = Mapping[str, Any]


class Refused(Exception):
    """A request that is not answered: its status, one of text-embeddings-inference's kinds of error, and a sentence."""

    def __init__(self, kind: str, told: str, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(told)
        self.kind, self.told, self.status, self.headers = kind, told, status or STATUS[kind], dict(headers or {})


@dataclass
class Plan:
    """What the model computes, or None, and what makes the parts of the answer's JSON of its result."""

    job: Job | None
    render: Callable[[Any], Iterable[bytes]]


@dataclass
class Limits:
    """What one request may ask for."""

    texts: int = 2048
    auto_truncate: bool = False


# What is in a body


def malformed(told: str) -> Refused:
    """A body of another shape than the route's."""
    return Refused("Validation", told, 422)


def field(body: Body, name: str, kind: type, default: Any) -> Any:
    """A field of a body; null is its default. Raises Refused on another type."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise malformed(f"`{name}` must be of type {kind.__name__}")
    return value


def side_of(body: Body) -> str | None:
    """ "left" or "right", where a body says which end of a text is cut."""
    said = field(body, "truncation_direction", str, None)
    if said is not None and said.lower() not in ("left", "right"):
        raise malformed('`truncation_direction` must be "Left" or "Right"')
    return said and said.lower()


def ids_of(value: Any, words: int) -> list[int]:
    """Ids of tokens; raises Refused on what is none of the model's."""
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < words for number in value):
        raise malformed(f"ids must be whole numbers from 0 to {words - 1}")
    return list(value)


def texts_of(value: Any, name: str, limits: Limits, words: int | None = None) -> list[Any]:
    """One text or several: strings, or where `words` says how many words the model has lists of ids."""
    if value is None:
        raise malformed(f"`{name}` is missing")
    if isinstance(value, str) or (words and isinstance(value, list) and value and type(value[0]) is int):
        value = [value]
    if not isinstance(value, list):
        raise malformed(f"`{name}` must be a text or a list of texts{', or ids of tokens' if words else ''}")
    check_count(len(value), name, limits)
    texts = []
    for text in value:
        if isinstance(text, list) and words:
            text = ids_of(text, words)
        elif not isinstance(text, str):
            raise malformed(f"`{name}` must be a text or a list of texts{', or ids of tokens' if words else ''}")
        check_empty(text, name)
        texts.append(text)
    return texts


def check_count(count: int, name: str, limits: Limits) -> None:
    """Raise Refused on no text or too many."""
    if not count:
        raise Refused("Empty", f"`{name}` cannot be empty")
    if count > limits.texts:
        raise Refused("Validation", f"`{name}` has {count} texts; a request may have {limits.texts}")


def check_empty(text: Any, name: str) -> None:
    """Raise Refused on a text of nothing, as both contracts do."""
    if not text:
        raise Refused("Empty", f"`{name}` holds an empty text")


def windows_of(served: Served, texts: Sequence[Any], body: Body, limits: Limits) -> list[Any]:
    """The texts as the model reads them, cut where the request or the server allows it."""
    try:
        return served.read(texts, field(body, "truncate", bool, limits.auto_truncate), side_of(body))
    except TooLong as error:
        raise Refused("Validation", str(error)) from error
    except Error as error:
        raise Refused("Tokenizer", str(error)) from error


# What is in an answer; numbers a row at a time, so that no row keeps the server's other threads waiting


def written(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def listed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """JSON of a list, of its entries' JSON."""
    yield b"["
    for number, part in enumerate(parts):
        yield b"," + part if number else part
    yield b"]"


def numbers(row: Any) -> bytes:  # (D,) -> JSON
    """float32 numbers; who reads them as float32 has the same bits. What is not finite, which JSON lacks, is null."""
    if not np.isfinite(row).all():
        return written([float(x) if np.isfinite(x) else None for x in row])
    return written(row.tolist())


# text-embeddings-inference's routes


def embedder_of(served: Served) -> Embedder:
    """The model for vectors; raises Refused where the checkpoint is none."""
    if not isinstance(served.task, Embedder):
        raise Refused("Backend", "Model is not an embedding model")
    return served.task


def vector_job(
    served: Served,
    texts: list[Any],
    body: Body,
    limits: Limits,
    outputs: Sequence[str],
    normalize: bool,
    name: str = "dimensions",
) -> Job:
    """What gives each text's vector, or its last hidden states, or the weights of its tokens."""
    embedder = embedder_of(served)
    prompt = field(body, "prompt_name", str, None)
    ids = any(isinstance(text, list) for text in texts)
    if ids and prompt is not None:
        raise malformed("`prompt_name` goes before texts, and ids were given")
    try:
        before = "" if ids else embedder.prompt_text(prompt)
    except Error:
        told = f"`prompt_name` must be one of {', '.join(embedder.prompts)}" if embedder.prompts else "this model has no prompts"
        raise malformed(told) from None
    dimensions = field(body, name, int, None)
    if dimensions is not None and not 1 <= dimensions <= embedder.dimension:
        raise malformed(f"`{name}` must be from 1 to {embedder.dimension}")
    windows = windows_of(served, [before + text if isinstance(text, str) else text for text in texts], body, limits)
    left_out = embedder.left_out(before)
    last = embedder.finisher(normalize, dimensions)

    @ieee
    def reduce(window: Any, rows: Any) -> Any:
        found = embedder.outputs(rows, [window], outputs, len(before), left_out)
        return window, {name: value[0] for name, value in found.items()}

    def finish(kept: list[Any]) -> Any:
        if outputs == ("dense",):
            return last(np.stack([found["dense"] for _, found in kept]))
        return kept

    return Job(windows, reduce, finish)


def embed(served: Served, body: Body, limits: Limits) -> Plan:
    """/embed: a vector for each text."""
    embedder = embedder_of(served)
    texts = texts_of(body.get("inputs"), "inputs", limits, embedder.model.config.vocab_size)
    job = vector_job(served, texts, body, limits, ("dense",), field(body, "normalize", bool, True))
    return Plan(job, lambda found: listed(map(numbers, found)))


def embed_all(served: Served, body: Body, limits: Limits) -> Plan:
    """/embed_all: the last hidden state of every token of each text."""
    embedder = embedder_of(served)
    texts = texts_of(body.get("inputs"), "inputs", limits, embedder.model.config.vocab_size)
    job = vector_job(served, texts, body, limits, ("tokens",), False)
    if job.tokens * embedder.model.config.hidden_size > NUMBERS:
        most = NUMBERS // embedder.model.config.hidden_size
        raise Refused("Validation", f"the texts have {job.tokens} tokens; a request may ask for the states of {most}")

    def render(kept: Any) -> Iterator[bytes]:
        yield b"["
        for number, (_, found) in enumerate(kept):
            yield from (b"," if number else b"", *listed(map(numbers, found["tokens"].astype(np.float32, copy=False))))
        yield b"]"

    return Plan(job, render)


def embed_sparse(served: Served, body: Body, limits: Limits) -> Plan:
    """/embed_sparse: the weights of each text's words, of a BGE-M3 checkpoint."""
    embedder = served.task
    if not isinstance(embedder, Embedder) or embedder.m3 is None:
        raise Refused("Backend", "Model is not an embedding model with sparse weights (BGE-M3)")
    texts = texts_of(body.get("inputs"), "inputs", limits, embedder.model.config.vocab_size)
    job = vector_job(served, texts, body, limits, ("sparse",), False)
    unused = bge_m3.unused_tokens(embedder.tokenizer)

    def render(kept: Any) -> Iterable[bytes]:
        found = (bge_m3.sparse([window.ids], [each["sparse"]], unused) for window, each in kept)
        return listed(written([{"index": token, "value": value} for token, value in weights.items()]) for weights in found)

    return Plan(job, render)


def similar(served: Served, body: Body, limits: Limits) -> Plan:
    """/similarity: how alike a sentence is to each of several."""
    embedder_of(served)
    inputs, said = body.get("inputs"), field(body, "parameters", dict, {})
    if not isinstance(inputs, Mapping):
        raise malformed("`inputs` must have `source_sentence` and `sentences`")
    source = field(inputs, "source_sentence", str, None)
    if source is None or not isinstance(inputs.get("sentences"), list):
        raise malformed("`inputs` must have `source_sentence`, a text, and `sentences`, a list of texts")
    texts = [*texts_of([source], "source_sentence", limits), *texts_of(inputs["sentences"], "sentences", limits)]
    job = vector_job(served, texts, said, limits, ("dense",), True)
    return Plan(job, lambda found: [numbers(similarity(found[:1], found[1:])[0])])


def rerank(served: Served, body: Body, limits: Limits) -> Plan:
    """/rerank: texts by how well they answer a query."""
    if served.kind != "reranker":
        raise Refused("Backend", "Model is not a re-ranker model")
    query = field(body, "query", str, None)
    if query is None:
        raise malformed("`query` is missing")
    check_empty(query, "query")
    if not isinstance(body.get("texts"), list):
        raise malformed("`texts` must be a list of texts")
    texts = texts_of(body["texts"], "texts", limits)
    raw, shown = field(body, "raw_scores", bool, False), field(body, "return_text", bool, False)
    windows = windows_of(served, [(query, text) for text in texts], body, limits)
    job = Job(windows, ieee(lambda _, logits: float(applied(logits, "none" if raw else "sigmoid")[0])))

    def render(scores: list[float]) -> Iterable[bytes]:
        order = sorted(range(len(texts)), key=lambda n: -scores[n])
        return listed(written({"index": n, "score": scores[n]} | ({"text": texts[n]} if shown else {})) for n in order)

    return Plan(job, render)


def predict(served: Served, body: Body, limits: Limits) -> Plan:
    """/predict: the labels of a text or a pair of texts, the likeliest first."""
    if served.kind == "embedding":
        raise Refused("Backend", "Model is not a classifier model")
    inputs = body.get("inputs")
    one = isinstance(inputs, str) or (isinstance(inputs, list) and bool(inputs) and all(isinstance(x, str) for x in inputs))
    entries = [inputs] if one else inputs
    if not isinstance(entries, list):
        raise malformed("`inputs` must be a text, a pair of texts, or a list of lists of one or two texts")
    check_count(len(entries), "inputs", limits)
    texts: list[Any] = []
    for entry in entries:
        parts = [entry] if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise malformed("`inputs` must be a text, a pair of texts, or a list of lists of one or two texts")
        check_empty(all(parts), "inputs")
        texts.append(tuple(parts) if len(parts) == 2 else parts[0])
    config = served.task.model.config
    several = config.num_labels == 1 or config.problem_type == "multi_label_classification"
    function = "none" if field(body, "raw_scores", bool, False) else "sigmoid" if several else "softmax"
    labels = labels_of(config)
    job = Job(windows_of(served, texts, body, limits), ieee(lambda _, logits: applied(logits, function).tolist()))

    def named(scores: list[float]) -> list[dict[str, Any]]:
        pairs = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
        return [{"score": score, "label": label} for label, score in pairs]

    return Plan(job, lambda kept: [written(named(kept[0]))] if one else listed(written(named(scores)) for scores in kept))


def tokenize(served: Served, body: Body, limits: Limits) -> Plan:
    """/tokenize: the tokens of each text, with their places in it."""
    texts = texts_of(body.get("inputs"), "inputs", limits)
    special = field(body, "add_special_tokens", bool, True)
    name = field(body, "prompt_name", str, None)
    if name is not None:
        if not isinstance(served.task, Embedder) or name not in served.task.prompts:
            raise malformed("`prompt_name` is none of this model's prompts")
        texts = [served.task.prompts[name] + text for text in texts]
    try:
        encodings = encoded(served.task.tokenizer, texts, add_special_tokens=special)
    except Error as error:
        raise Refused("Tokenizer", str(error)) from error

    def tokens(text: str, encoding: Any) -> list[dict[str, Any]]:
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [
            {"id": number, "text": token, "special": True, "start": None, "stop": None}
            if special
            else {"id": number, "text": text[start:stop], "special": False, "start": start, "stop": stop}
            for number, token, special, (start, stop) in rows
        ]

    return Plan(None, lambda _: listed(written(tokens(*pair)) for pair in zip(texts, encodings, strict=True)))


def decoded(served: Served, body: Body, limits: Limits) -> Plan:
    """/decode: the texts of ids."""
    ids = body.get("ids")
    if not isinstance(ids, list):
        raise malformed("`ids` must be a list of ids, or a list of lists of them")
    check_count(len(ids), "ids", Limits(max(limits.texts, served.longest)))
    words = served.task.model.config.vocab_size
    lists = [ids_of(each, words) for each in ([ids] if type(ids[0]) is int else ids)]
    skip = field(body, "skip_special_tokens", bool, True)
    return Plan(None, lambda _: [written([decode(served.task.tokenizer, each, skip) for each in lists])])


def by_kind(served: Served, body: Body, limits: Limits) -> Plan:
    """POST /: what the model is for, as huggingface_hub's InferenceClient asks for it."""
    if served.kind == "embedding":
        return (similar if isinstance(body.get("inputs"), Mapping) else embed)(served, body, limits)
    return (rerank if served.kind == "reranker" else predict)(served, body, limits)


# OpenAI's


def openai_embed(served: Served, body: Body, limits: Limits) -> Plan:
    """/v1/embeddings: vectors of length 1."""
    embedder = embedder_of(served)
    form = field(body, "encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise malformed('`encoding_format` must be "float" or "base64"')
    texts = texts_of(body.get("input"), "input", limits, embedder.model.config.vocab_size)
    job = vector_job(served, texts, body, limits, ("dense",), True)
    used = {"prompt_tokens": job.tokens, "total_tokens": job.tokens}

    def render(found: Any) -> Iterator[bytes]:
        yield b'{"object":"list","data":'
        rows = (
            b'"' + base64.b64encode(row.astype("<f4").tobytes()) + b'"' if form == "base64" else numbers(row) for row in found
        )
        yield from listed(b'{"object":"embedding","index":%d,"embedding":%b}' % pair for pair in enumerate(rows))
        yield b',"model":%b,"usage":%b}' % (written(served.name), written(used))

    return Plan(job, render)


ROUTES: dict[str, Callable[[Served, Body, Limits], Plan]] = {
    "/": by_kind,
    "/embed": embed,
    "/embed_all": embed_all,
    "/embed_sparse": embed_sparse,
    "/similarity": similar,
    "/rerank": rerank,
    "/predict": predict,
    "/tokenize": tokenize,
    "/decode": decoded,
    "/v1/embeddings": openai_embed,
}


def model_type(served: Served) -> dict[str, Any]:
    """What /info says of what a checkpoint can do."""
    if isinstance(served.task, Embedder):
        return {"embedding": {"pooling": "+".join(served.task.recipe.pooling.modes)}}
    labels = labels_of(served.task.model.config)
    return {
        served.kind: {
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    }

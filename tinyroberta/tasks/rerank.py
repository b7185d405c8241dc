"""How well passages answer a query: a model that reads each pair together and gives a score; mirrors sentence-transformers'
CrossEncoder.

A pair's score has the same bits alone and in any batch, wherever the backend's rows have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import Error, ieee
from ..keywords import running_of
from ..progress import counted
from ..weights.checkpoint import beside
from ..weights.files import read_json
from ..weights.hub import checkpoint_folder, on_disk
from .batches import Answered, mapped
from .sentence_transformers import TORCH_ACTIVATIONS, activation_of, modules_of
from .task import Long, Task, longest_of, open_model

Array = np.ndarray[Any, np.dtype[Any]]
Activation = str | Callable[[Any], Any]
NAMES = {"identity": "linear"} | {name: name for name in TORCH_ACTIVATIONS.values()}


class Reranker(Task):
    """A model with a head for pairs of texts, and the activation that makes scores of what it gives."""

    head: ClassVar[str] = "ForSequenceClassification"
    name: ClassVar[str] = "rerank"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        activation_fn: Activation | None = None,
        *,
        max_length: int | None = None,
        long: Long = "truncate",
        batch_tokens: int | None = None,
    ) -> None:
        """A reranker of a model and the tokenizer that `load_tokenizer` gives.

        activation_fn: None for what the configuration says, else the sigmoid for one label and nothing for several; a name, or a
        function of arrays (B, labels). max_length: of a pair in tokens. Raises Error on a model with another head.
        """
        super().__init__(model, tokenizer, long=long, batch_tokens=batch_tokens)
        usual = "sigmoid" if model.config.num_labels == 1 else "linear"
        self.activation_fn = (
            activation_of(_said(model.config.extra), usual, "config.json") if activation_fn is None else activation_fn
        )
        _activation(self.activation_fn)
        self.max_length = min(longest_of(model, tokenizer), self.longest) if max_length is None else max_length

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path | None = None, *, revision: str | None = None, **running: Any) -> Self:
        """The reranker of a folder or a Hub repository: any checkpoint ...ForSequenceClassification, as CrossEncoder reads it.

        running: load's keywords (backend, dtype, matmul_precision, threads, reproducible), `activation_fn`, `max_length`, `long`
        and `batch_tokens`. Raises Error on a checkpoint without that head, modules that are not read here, or as `load`.
        """
        own = {name: running.pop(name) for name in ("activation_fn", "max_length", "long", "batch_tokens") if name in running}
        if path_or_repo is None:
            return cls(*open_model(cls.head, cls.name, None, revision, **running), **own)
        running = running_of(running, on_disk(path_or_repo))
        folder = checkpoint_folder(path_or_repo, revision, beside=True)
        if (modules := modules_of(folder) if folder.is_dir() else []) not in ([], ["Transformer"]):
            raise Error(f"{folder} has the modules {', '.join(modules)}; a reranker that is read here has Transformer alone")
        said = beside(folder, "config_sentence_transformers.json")
        settings = read_json(said) if said.is_file() else {}
        model, tokenizer = open_model(cls.head, cls.name, folder, None, **running)
        if own.get("activation_fn") is None and settings.get("activation_fn") is not None:
            usual = "sigmoid" if model.config.num_labels == 1 else "linear"
            own["activation_fn"] = activation_of(settings["activation_fn"], usual, said)
        return cls(model, tokenizer, **own)

    def __repr__(self) -> str:
        named = self.activation_fn if isinstance(self.activation_fn, str) else "a function"
        size = f"{self.num_labels} label{'s' * (self.num_labels != 1)}, pairs of at most {self.max_length} tokens"
        return f"<{type(self).__name__}: {size}, activation {named}; {self.model!r}>"

    @property
    def num_labels(self) -> int:
        """How many numbers a pair gets."""
        return int(self.model.config.num_labels)

    @property
    def longest(self) -> int:
        """How many tokens of a pair the model reads, whatever its tokenizer's files say."""
        return int(self.model.config.usable_length)

    def predict(
        self,
        pairs: Any,
        *,
        activation_fn: Activation | None = None,
        apply_softmax: bool = False,
        max_length: int | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        **theirs: Any,
    ) -> Any:
        """Pairs of strings, any iterable of tuples or lists of two -> scores, float32 (N,), or (N, labels) of several labels.

        One pair gives one score, or (labels,). activation_fn: for this call, a name or a function of arrays (B, labels), or one
        of torch's classes, whose name is read. apply_softmax: over several labels; of one it would leave 1, and changes nothing.
        long: "truncate" cuts the longer text of a pair that is too long, and a warning says how many were; "error" refuses it;
        "window" reads all of the second text in windows, of which the greatest score counts, before the activation.
        The other keywords are CrossEncoder.predict's, which this mirrors: they are taken where they change nothing. Raises Error
        on what are no pairs of strings, a text that is no Unicode, or a value that is not allowed.
        """
        for name, value in theirs.items():
            if name == "show_progress_bar":
                progress = progress if value is None else bool(value)
            elif name not in ("batch_size", "convert_to_numpy") and value not in (None, False):
                raise Error(f"predict does nothing with {name} ({str(value)[:60]}): leave it out")
        one = _is_pair(pairs)
        inputs = [pairs] if one else pairs
        if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | Mapping):
            raise Error(f"pairs are of type {type(pairs).__name__}; they must be a list of pairs of strings")
        how: dict[str, Any] = {"max_length": max_length, "long": long, "batch_tokens": batch_tokens}
        scores = self.stream(inputs, activation_fn=activation_fn, apply_softmax=apply_softmax, **how)
        total = len(inputs) if isinstance(inputs, list | tuple) else None
        found = list(counted(scores, total, "ranking", "pairs", progress))
        whole = np.array(found, np.float32).reshape(len(found), *([self.num_labels] if self.num_labels > 1 else []))
        return whole[0] if one else whole

    def rank(
        self, query: str, documents: Iterable[str], top_k: int | None = None, return_documents: bool = False, **how: Any
    ) -> list[dict[str, Any]]:
        """Documents by their scores for a query, the best first: [{"corpus_id": which, "score": a number, "text": the document}].

        The text is there with return_documents. how: predict's keywords; mirrors CrossEncoder.rank. Raises Error on a model with
        several labels, a top_k below 0, or as predict.
        """
        if self.num_labels != 1:
            raise Error(
                f"rank needs a model with one label, and this one has {self.num_labels}: predict gives each label's scores"
            )
        if top_k is not None and (type(top_k) is not int or top_k < 0):
            raise Error(f"top_k is {top_k!r}; it must be a whole number, or None for all documents")
        if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
            raise Error(f"documents are of type {type(documents).__name__}; they must be a list of strings")
        texts = list(documents)
        scores = self.predict([(query, text) for text in texts], **how)
        order = sorted(range(len(texts)), key=lambda n: scores[n], reverse=True)[:top_k]
        return [{"corpus_id": n, "score": float(scores[n])} | ({"text": texts[n]} if return_documents else {}) for n in order]

    def stream(
        self,
        pairs: Iterable[Any],
        *,
        activation_fn: Activation | None = None,
        apply_softmax: bool = False,
        max_length: int | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Iterator[Any]:
        """The scores of `predict`, one pair after another as they are computed, in memory that does not grow.

        pairs may be batches.Chunks. A pair that cannot be read raises its Error when its turn comes; keep_errors yields it.
        """
        activation = _activation(self.activation_fn if activation_fn is None else activation_fn)

        @ieee
        def finish(answer: Answered) -> Any:
            scores = np.max(answer.results, axis=0)[None]  # (1, labels)
            if callable(activation):
                scores = np.asarray(activation(scores))
            elif activation is not None:
                with self.model.ops.running(self.model.settings):
                    scores = self.model.ops.to_numpy(self.model.ops.activation(self.model.ops.asarray(scores), activation))
            if apply_softmax and self.num_labels > 1:
                scores = np.exp(scores - scores.max(1, keepdims=True))
                scores /= scores.sum(1, keepdims=True)
            scores = scores.astype(np.float32)
            return scores[0, 0] if self.num_labels == 1 else scores[0]

        asked = self.long if long is None else long
        how: dict[str, Any] = {"long": long, "batch_tokens": batch_tokens, "keep_errors": keep_errors}
        how["max_length"] = self.max_length if max_length is None else max_length
        how["strategy"] = "only_second" if asked == "window" else "longest_first"
        answers = self.answered(mapped(_pair, pairs), ieee(lambda windows: list(self.packed(windows)["logits"])), **how)
        return (finish(answer) if answer.error is None else answer.error for answer in answers)


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(part, str) for part in given)


def _pair(given: Any) -> Any:
    """A pair as the tokenizer takes it; raises Error on what is none."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Error(f"a pair is {str(given)[:80]!r}; it must be two strings, a query and a document")
    return tuple(given)


def _said(extra: Mapping[str, Any]) -> Any:
    """The activation that a config.json names, under its key since sentence-transformers 4, or the one before."""
    settings = extra.get("sentence_transformers")
    if isinstance(settings, Mapping) and "activation_fn" in settings:
        return settings["activation_fn"]
    return extra.get("sbert_ce_default_activation_function")


def _activation(given: Any) -> Any:
    """What is applied to scores: None for nothing, the name of a backend's activation, or a function; raises Error on others."""
    kind = given if isinstance(given, type) else type(given)
    if kind.__module__.startswith("torch."):
        given = TORCH_ACTIVATIONS.get(kind.__name__, kind.__name__)
    if isinstance(given, str):
        if given not in NAMES:
            raise Error(f"activation_fn is {given!r}; it must be one of {', '.join(NAMES)}, or a function of an array")
        return None if NAMES[given] == "linear" else NAMES[given]
    if not callable(given):
        raise Error(f"activation_fn is of type {type(given).__name__}; it must be a name, or a function of an array")
    return given

"""Vectors of texts: a model's rows pooled as a sentence-transformers folder says, or as mean pooling where it says nothing.

A vector is made of its own text's rows alone, so it has the same bits alone, in any batch, in any order and under any budget of
tokens, wherever the backend's rows have.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import Error, ieee
from ..inputs import check_numbers
from ..keywords import running_of
from ..plan import plan
from ..progress import counted
from ..weights.hub import checkpoint_folder, on_disk
from . import bge_m3
from .batches import Answered
from .sentence_transformers import Dense, Normalize, Parts, Recipe, read_recipe
from .task import Long, Task, longest_of, open_model, reads_types, single

Array = np.ndarray[Any, np.dtype[Any]]
Vector = Array | Error
Finish = Callable[[Array], Array]
PRECISIONS = ("float32", "binary", "ubinary")
THEIRS = {  # SentenceTransformer.encode's keywords that change nothing here, and the values of those that would change something
    "batch_size": None,
    "chunk_size": None,
    "convert_to_numpy": (True, None),
    "device": (None, "cpu"),
    "pool": (None,),
    "task": None,
}


class Embedder(Task):
    """A model and the recipe by which its rows become a text's vector; mirrors sentence-transformers' SentenceTransformer."""

    head: ClassVar[str] = "Model"
    name: ClassVar[str] = "embed"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Recipe | None = None,
        m3: bge_m3.Linears | None = None,
        *,
        long: Long = "truncate",
        batch_tokens: int | None = None,
    ) -> None:
        """An embedder of a bare model, the tokenizer that `load_tokenizer` gives, and a Recipe (mean pooling where that is None).

        Raises Error on a model with a head.
        """
        super().__init__(model, tokenizer, long=long, batch_tokens=batch_tokens)
        self.recipe = recipe or Recipe(Path(), found=False)
        self.prompts, self.default_prompt_name = dict(self.recipe.prompts), self.recipe.default_prompt_name
        self.similarity_fn_name = self.recipe.similarity
        self.max_seq_length = min(self.recipe.max_seq_length or longest_of(model, tokenizer), self.longest)
        self.m3 = m3
        layers = {f"after.{n}": step for n, step in enumerate(self.recipe.after) if isinstance(step, Dense)}
        self._layers = self._prepared({name: (step.weight, step.bias) for name, step in layers.items()})
        residuals = {name: (step.residual, None) for name, step in layers.items() if isinstance(step.residual, np.ndarray)}
        self._residuals = self._prepared(residuals)
        self._m3 = {} if m3 is None else self._prepared(m3._asdict())
        if self.recipe.lower:
            _lower(tokenizer)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path | None = None, *, revision: str | None = None, **running: Any) -> Self:
        """The embedder of a folder or a Hub repository, or the embedded model's where none is named.

        A sentence-transformers folder is read as it is; a bare checkpoint gets mean pooling, and repr() says so. running: load's
        keywords (backend, dtype, matmul_precision, threads, reproducible), `long` and `batch_tokens`. Raises Error on a module
        that is not read here, damaged files, or as `load`.
        """
        own = {name: running.pop(name) for name in ("long", "batch_tokens") if name in running}
        if path_or_repo is None:
            model, tokenizer = open_model(cls.head, cls.name, None, revision, **running)
            return cls(model, tokenizer, Recipe(Path(), after=(Normalize(),)), **own)
        running = running_of(running, on_disk(path_or_repo))
        folder = checkpoint_folder(path_or_repo, revision, beside=True)
        recipe = read_recipe(folder)
        model, tokenizer = open_model(cls.head, cls.name, recipe.folder, None, **running)
        return cls(model, tokenizer, recipe, bge_m3.read_linears(recipe.folder, model.config.hidden_size), **own)

    def __repr__(self) -> str:
        size = f"vectors of {self.dimension} numbers, texts of at most {self.max_seq_length} tokens"
        return f"<{type(self).__name__}: {self.recipe.told()}; {size}; {self.model!r}>"

    @property
    def longest(self) -> int:
        """How many tokens of a text the model reads, whatever its tokenizer's files say."""
        return int(self.model.config.usable_length)

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        return self.recipe.width(self.model.config.hidden_size)

    def get_sentence_embedding_dimension(self) -> int:
        """The same under sentence-transformers' name."""
        return self.dimension

    def encode(
        self,
        texts: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        outputs: Sequence[str] | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_tensor: bool = False,
        **theirs: Any,
    ) -> Any:
        """Texts, any iterable of strings, -> their vectors, float32 (N, D), in order; (D,) for one string.

        prompt, or the one that `prompt_name` names among `prompts`, is put before every text. normalize: True for vectors of
        length 1, False to leave out the folder's own Normalize. max_length: of a text in tokens (max_seq_length). truncate_dim
        keeps the first numbers of a vector, before normalize=True. long: "truncate" cuts longer texts, and a warning says how
        many; "error" refuses them; "window" reads all of a text in windows; pooled vectors are averaged, each as often as it has
        tokens, before what follows pooling. progress: True or False; None is a bar on a terminal where it takes some seconds.
        outputs, of a BGE-M3 checkpoint: "dense", "sparse", "colbert" -> a dict of them (bge_m3.py). output_value
        "token_embeddings" gives a list of (tokens, hidden) instead, None dicts of all. precision: "binary" and "ubinary" pack a
        bit a number, as quantize_embeddings does.
        The other keywords are SentenceTransformer.encode's (5.7), which this mirrors: they are taken where they change nothing.
        Raises Error on what is no text, a text that is no Unicode, an unknown prompt_name, or a value that is not allowed.
        """
        normalize, progress = self._check_theirs(theirs, normalize, progress)
        if precision not in PRECISIONS:
            told = "the steps of int8 and uint8 would depend on which other texts this call has"
            raise Error(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}: {told}")
        given: dict[str, Any] = {"prompt_name": prompt_name, "prompt": prompt, "max_length": max_length, "long": long}
        given["batch_tokens"] = batch_tokens
        finish = self.finisher(normalize, truncate_dim)
        one = isinstance(texts, str)
        inputs = [texts] if one else texts
        if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | bytearray | Mapping):
            raise Error(f"a text is of type {type(texts).__name__}; it must be a string")
        if outputs is not None:
            self._check_outputs(outputs)
            answers = self._shown(inputs, self._answered(inputs, outputs, finish, **given), progress)
            return self._outputs(answers, finish, outputs, one)
        if output_value == "sentence_embedding":
            answers = self._shown(inputs, self._answered(inputs, ("dense",), finish, **given), progress)
            vectors = _stacked((_vector(answer, finish) for answer in answers), self._width(truncate_dim))
            vectors = _quantized(vectors, precision)
            vectors = vectors[0] if one else vectors
            return _as_tensor(vectors) if convert_to_tensor else vectors
        if output_value not in ("token_embeddings", None):
            raise Error(f"output_value is {output_value!r}; it must be 'sentence_embedding', 'token_embeddings' or None")
        answers = self._shown(inputs, self._answered(inputs, ("dense", "tokens"), finish, **given), progress)
        tokens = [_tokens(answer) if output_value else self._everything(answer, finish) for answer in answers]
        return tokens[0] if one else tokens

    def stream(
        self,
        texts: Iterable[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Iterator[Any]:
        """The vectors of `encode`, float32 (D,) each, one after another as they are computed, in memory that does not grow.

        A text that cannot be read raises its Error when its turn comes; keep_errors yields it.
        """
        finish = self.finisher(normalize, truncate_dim)
        given: dict[str, Any] = {"prompt_name": prompt_name, "prompt": prompt, "max_length": max_length, "long": long}
        answers = self._answered(texts, ("dense",), finish, batch_tokens=batch_tokens, keep_errors=keep_errors, **given)
        # a copy, since a vector that is kept would keep those of its whole group
        return (_vector(answer, finish).copy() if answer.error is None else answer.error for answer in answers)

    def encode_query(self, texts: Any, **how: Any) -> Any:
        """`encode` with the prompt named "query", where there is one and none is given; as SentenceTransformer.encode_query."""
        return self.encode(texts, **self._role(how, ("query",)))

    def encode_document(self, texts: Any, **how: Any) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus"; as SentenceTransformer.encode_document."""
        return self.encode(texts, **self._role(how, ("document", "passage", "corpus")))

    def similarity(self, a: Any, b: Any) -> Array:
        """How alike the vectors (N, D) and (M, D) are, float32 (N, M), by `similarity_fn_name`.

        That is "cosine", "dot", or minus the distance, "euclidean" or "manhattan". Raises Error on other shapes or names.
        """
        return similarity(a, b, self.similarity_fn_name)

    # BGE-M3

    def words(self, sparse: Any) -> Any:
        """{token's text: weight} of a sparse output {token id: weight}, or a list of them of a list.

        Two tokens that read alike, as at the start of a word and within, are one word with the greater weight.
        """
        if not isinstance(sparse, Mapping):
            return [self.words(one) for one in sparse]
        found: dict[str, float] = {}
        for token, weight in sparse.items():
            word = self.tokenizer.decode([int(token)])
            found[word] = max(weight, found.get(word, 0.0))
        return found

    def compute_score(
        self, sentence_pairs: Any, *, weights_for_different_modes: Sequence[float] | None = None, **how: Any
    ) -> dict[str, Any]:
        """Pairs (query, passage) -> {"dense", "sparse", "colbert", "sparse+dense", "colbert+sparse+dense"}: float32 (N,) each, a
        number for one pair.

        weights_for_different_modes: of dense, sparse and colbert in the sums, [1, 1, 1] where None; mirrors BGEM3FlagModel's
        compute_score. how: encode's keywords. Raises Error on a checkpoint without BGE-M3's two layers, and on what are no pairs.
        """
        one = (
            isinstance(sentence_pairs, tuple | list)
            and len(sentence_pairs) == 2
            and all(isinstance(x, str) for x in sentence_pairs)
        )
        pairs = [sentence_pairs] if one else list(sentence_pairs)
        if wrong := [pair for pair in pairs if not isinstance(pair, tuple | list) or len(pair) != 2]:
            raise Error(f"a pair is {str(wrong[0])[:80]!r}; it must be two strings, a query and a passage")
        queries, passages = (self.encode([pair[n] for pair in pairs], outputs=bge_m3.OUTPUTS, **how) for n in (0, 1))
        scores = bge_m3.scores(queries, passages, weights_for_different_modes)
        return {name: float(x[0]) for name, x in scores.items()} if one else scores

    # From texts to what is computed for each

    def _prepared(self, layers: Mapping[str, tuple[Any, Any]]) -> Any:
        """Dense layers, (weight, bias) by name, as the backend's linear takes them."""
        tree = {name: {"weight": weight} | ({} if bias is None else {"bias": bias}) for name, (weight, bias) in layers.items()}
        return self.model.ops.prepare(plan(tree), self.model.settings) if tree else {}

    def _answered(
        self,
        texts: Iterable[Any],
        kinds: Sequence[str],
        finish: Finish,
        *,
        prompt_name: str | None,
        prompt: str | None,
        max_length: int | None,
        long: Long | None,
        batch_tokens: int | None,
        keep_errors: bool = False,
    ) -> Iterator[Answered]:
        """Texts with a dict of `kinds` for each of their windows; beside "dense" the "vector" that `finish` makes of it."""
        before = self.prompt_text(prompt_name, prompt)
        texts = (before + text if isinstance(text, str) else single(text) for text in texts)
        left_out = self.left_out(before)

        @ieee
        def compute(windows: list[Any]) -> list[dict[str, Any]]:
            found = self._computed(windows, kinds, len(before), left_out)
            if "dense" in kinds:
                found["vector"] = finish(found["dense"])
            return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]

        length = min(self.max_seq_length, self.longest) if max_length is None else max_length
        how: dict[str, Any] = {"long": long, "batch_tokens": batch_tokens, "keep_errors": keep_errors}
        return self.answered(texts, compute, max_length=length, **how)

    def _computed(self, windows: list[Any], kinds: Sequence[str], characters: int, left_out: int) -> dict[str, Any]:
        types = [window.type_ids for window in windows] if reads_types(self.model, self.tokenizer) else None
        states = self.model.packed([window.ids for window in windows], types).last_hidden_state
        return self.outputs(states, windows, kinds, characters, left_out)

    def outputs(
        self, states: Any, windows: list[Any], kinds: Sequence[str], characters: int = 0, left_out: int = 0
    ) -> dict[str, Any]:
        """What windows' last hidden states (T, hidden) come to: by each name in `kinds` an item a window.

        "tokens" are their states, "dense" pooled vectors, "sparse" and "colbert" BGE-M3's. characters, left_out: of a prompt
        before each text, its length and the tokens of it that are not pooled.
        """
        ops = self.model.ops
        found: dict[str, Any] = {}
        ends = np.cumsum([len(window) for window in windows])
        for name in kinds:
            if name == "tokens":
                found[name] = np.split(ops.to_numpy(states), ends[:-1])
            elif name == "dense":
                begins = np.concatenate([[0], ends[:-1]])
                starts = begins + [_prompt_tokens(window, characters, left_out) for window in windows] if left_out else begins
                found[name] = self.recipe.pooling(ops, states, Parts(begins, starts, ends))
            else:
                with ops.running(self.model.settings):
                    x = ops.linear(states, **self._m3[name], activation="relu" if name == "sparse" else None)
                found[name] = np.split(ops.to_numpy(x), ends[:-1])
        return found

    def finisher(self, normalize: bool | None, truncate_dim: int | None) -> Finish:
        """What makes texts' vectors, float32 (B, d), of their pooled ones (B, D), by encode's arguments of these names."""
        self._width(truncate_dim)
        steps = self.recipe.after
        while normalize is False and steps and isinstance(steps[-1], Normalize):
            steps = steps[:-1]

        @ieee
        def finish(pooled: Array) -> Array:
            x = pooled.astype(self.model.settings.dtype)
            for number, step in enumerate(steps):
                name = f"after.{number}"
                x = normalized(x) if isinstance(step, Normalize) else np.stack([self._projected(row, step, name) for row in x])
            x = x[:, :truncate_dim]
            return (normalized(x) if normalize else x).astype(np.float32)

        return finish

    def _projected(self, x: Array, layer: Dense, name: str) -> Array:
        """A Dense layer, by itself: a row's bits are then its own on every backend."""
        ops = self.model.ops
        with ops.running(self.model.settings):
            row = ops.asarray(x[None])
            y = ops.to_numpy(ops.linear(row, **self._layers[name], activation=_activation(layer.activation)))[0]
            if name in self._residuals:
                return y + ops.to_numpy(ops.linear(row, **self._residuals[name]))[0]
        return y + x if layer.residual else y

    def prompt_text(self, prompt_name: str | None, prompt: str | None = None) -> str:
        """What goes before a text, by encode's arguments of these names."""
        if prompt is not None:
            if not isinstance(prompt, str):
                raise Error(f"prompt is of type {type(prompt).__name__}; it must be a string")
            return prompt
        if prompt_name is None:
            return self.prompts.get(self.default_prompt_name, "") if self.default_prompt_name is not None else ""
        if prompt_name not in self.prompts:
            raise Error(
                f"prompt_name is {prompt_name!r}; this model's prompts are {', '.join(self.prompts) or 'none: give prompt'}"
            )
        return self.prompts[prompt_name]

    def left_out(self, prompt: str) -> int:
        """How many tokens of a prompt pooling leaves out: where it does, those of the prompt alone, less the one that ends it."""
        if not prompt or self.recipe.pooling.include_prompt:
            return 0
        with self._reading:
            encoding = self.tokenizer.encode(prompt)
        return len(encoding) - bool(encoding.special_tokens_mask[-1])

    def _role(self, how: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        if how.get("prompt_name") is None and how.get("prompt") is None:
            return how | {"prompt_name": next((name for name in names if name in self.prompts), None)}
        return how

    # What is given and what is shown

    def _check_theirs(
        self, theirs: Mapping[str, Any], normalize: bool | None, progress: bool | None
    ) -> tuple[bool | None, bool | None]:
        """`normalize` and `progress`, also by sentence-transformers' names; raises Error on a keyword that asks for more."""
        for name, value in theirs.items():
            if name == "normalize_embeddings":
                normalize = True if value else normalize
            elif name == "show_progress_bar":
                progress = progress if value is None else bool(value)
            elif name not in THEIRS:
                raise Error(f"encode does not know {name}; its docstring lists what it takes")
            elif (allowed := THEIRS[name]) is not None and str(value) not in map(str, allowed):
                instead = {"convert_to_numpy": "the vectors are NumPy's", "pool": "one process computes, in all threads"}
                told = instead.get(name, 'from_pretrained(..., backend="cupy") computes on a GPU')
                raise Error(f"encode does nothing with {name} ({str(value)[:60]}): {told}")
        return normalize, progress

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        if isinstance(outputs, str) or not outputs or not set(outputs) <= set(bge_m3.OUTPUTS):
            raise Error(f"outputs is {outputs!r}; it must be some of {', '.join(bge_m3.OUTPUTS)}")
        if self.m3 is None and set(outputs) != {"dense"}:
            raise Error(f"{self.recipe.folder} is no BGE-M3 checkpoint: it has no {' and no '.join(bge_m3.FILES.values())}")

    def _width(self, truncate_dim: int | None) -> int:
        if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
            raise Error(f"truncate_dim is {truncate_dim!r}; it must be a whole number of at least 1")
        return min(self.dimension, truncate_dim or self.dimension)

    def _shown(self, texts: Iterable[Any], answers: Iterable[Any], progress: bool | None) -> Iterator[Any]:
        """The answers, with a bar that counts them."""
        total = len(texts) if isinstance(texts, Sized) else None
        return counted(answers, total, "embedding", "texts", progress)

    def _outputs(self, answers: Iterator[Answered], finish: Finish, outputs: Sequence[str], one: bool) -> dict[str, Any]:
        found: dict[str, list[Any]] = {name: [] for name in outputs}
        unused = bge_m3.unused_tokens(self.tokenizer)
        for answer in answers:
            for name in outputs:
                parts = [result[name] for result in answer.results]
                if name == "dense":
                    found[name].append(_vector(answer, finish))
                elif name == "sparse":
                    found[name].append(bge_m3.sparse([window.ids for window in answer.windows], parts, unused))
                else:
                    found[name].append(np.concatenate([normalized(x[1:]) for x in parts]).astype(np.float32))
        result: dict[str, Any] = dict(found)
        if "dense" in found:
            result["dense"] = _stacked(iter(found["dense"]), self.dimension)
        return {name: x[0] for name, x in result.items()} if one else result

    def _everything(self, answer: Answered, finish: Finish) -> dict[str, Array]:
        ids = np.concatenate([window.ids for window in answer.windows])
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_embeddings": _tokens(answer),
            "sentence_embedding": _vector(answer, finish),
        }


def similarity(a: Any, b: Any, name: str = "cosine") -> Array:
    """How alike the rows of a (N, D) and b (M, D) are, float32 (N, M), by one of the names of SIMILARITIES."""
    x, y = (np.atleast_2d(check_numbers(given, "a vector")).astype(np.float32, copy=False) for given in (a, b))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise Error(f"vectors of shapes {np.shape(a)} and {np.shape(b)} cannot be compared; they must be (N, D) and (M, D)")
    if name == "cosine":
        return normalized(x) @ normalized(y).T
    if name == "dot":
        return x @ y.T
    if name not in ("euclidean", "manhattan"):
        raise Error(f"similarity_fn_name is {name!r}; it must be one of cosine, dot, euclidean, manhattan")
    found = np.empty((len(x), len(y)), np.float32)
    for row, vector in zip(found, x, strict=True):
        apart = np.abs(y - vector)
        row[:] = -apart.sum(1) if name == "manhattan" else -np.sqrt(np.square(apart).sum(1))
    return found


def normalized(x: Array) -> Array:  # (..., D) -> (..., D)
    """Vectors divided by their lengths, or by 1e-12 where they are shorter; mirrors torch.nn.functional.normalize."""
    length = np.sqrt(np.square(x, dtype=np.float64).sum(-1, keepdims=True))
    return (x / np.maximum(length, 1e-12)).astype(x.dtype)


def _vector(answer: Answered, finish: Finish) -> Array:  # -> (d,)
    """A text's vector: of several windows that of the mean of their pooled ones, each as often as it has tokens."""
    if len(answer.results) == 1:
        vector: Array = answer.results[0]["vector"]
        return vector
    counts = [len(window) for window in answer.windows]
    weighted = [count * result["dense"].astype(np.float64) for count, result in zip(counts, answer.results, strict=True)]
    return finish(np.stack(weighted).sum(0, keepdims=True) / sum(counts))[0]


def _prompt_tokens(window: Any, characters: int, count: int) -> int:
    """How many rows at a window's beginning are its prompt's: `count`, but of a window that begins behind the prompt none."""
    if not count:
        return 0
    begins = next(
        (start for (start, _), special in zip(window.offsets, window.special_tokens_mask, strict=True) if not special), 0
    )
    return min(count, len(window) - 1) if begins < characters else 0


def _activation(name: str) -> str | None:
    return None if name == "linear" else name


def _tokens(answer: Answered) -> Array:
    return np.concatenate([result["tokens"] for result in answer.results]).astype(np.float32, copy=False)


def _stacked(vectors: Iterator[Array], width: int) -> Array:
    """Vectors of any number in one array, which grows where it stands."""
    whole, count = np.empty((0, width), np.float32), 0
    for vector in vectors:
        if count == len(whole):
            whole.resize((max(256, math.ceil(1.5 * count)), width), refcheck=False)
        whole[count] = vector
        count += 1
    whole.resize((count, width), refcheck=False)
    return whole


def _quantized(vectors: Array, precision: str) -> Array:
    if precision == "float32":
        return vectors
    bits = np.packbits(vectors > 0, axis=-1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def _as_tensor(vectors: Array) -> Any:
    try:
        import torch
    except ImportError as error:
        raise Error("convert_to_tensor needs torch, which is not installed: leave it out for NumPy's arrays") from error
    return torch.from_numpy(vectors)


def _lower(tokenizer: Any) -> None:
    """Lowercase before whatever else a tokenizer makes of a text."""
    from tokenizers import normalizers

    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if own is None else [own])])

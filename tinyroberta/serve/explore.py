"""What the page at / shows of a masked language model: one sentence from its tokens to the words for its mask.

Everything is seen by the tap (tap.py). A layer's guess, the "logit lens" (nostalgebraist, 2020), is what the model says when that
layer's stream is put in the last one's place: the final norm and the head then read it.
"""

import base64
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.numpy import softmax
from ..errors import Error, ieee
from ..tap import trace
from ..tasks.fill_mask import FillMask
from ..tasks.tokenizer import decode, mask_token, tokenize
from ..weights.checkpoint import read_config
from ..weights.hub import checkpoint_folder
from .contracts import Body, Limits, Plan, Refused, embedder_of, malformed, texts_of, vector_job, written
from .kinds import EMBEDDED, Served
from .packing import Job

PAGE = Path(__file__).parent / "page.html"
TOKENS = 64  # of a sentence: a picture of more is not looked at
WORDS = 10  # for each mask
GUESSES = 3  # of each layer at each token
SENTENCES = 16  # that are compared


class Explorer:
    """The masked language model that the page shows: the one that is served, else the embedded one."""

    def __init__(self, path_or_repo: str | Path | None = None, revision: str | None = None, **running: Any) -> None:
        """The model is read on first use. path_or_repo: what is served; running: load's keywords for it."""
        self._own: Callable[[], FillMask] = lambda: FillMask.from_pretrained(backend="numpy")
        self.name = EMBEDDED
        if path_or_repo is not None and _is_masked(checkpoint_folder(path_or_repo, revision)):
            self._own = lambda: FillMask.from_pretrained(path_or_repo, revision=revision, **running)
            self.name = Path(path_or_repo).name
        self._task: FillMask | None = None
        self._lock = threading.Lock()

    @property
    def task(self) -> FillMask:
        """The model with its tokenizer."""
        with self._lock:
            self._task = self._task or self._own()
            return self._task

    def routes(self) -> Mapping[str, Callable[[Served, Body, Limits], Plan]]:
        """The page's own routes."""
        return {"/explore/about": self.about, "/explore/sentence": self.sentence, "/explore/similar": similar}

    def about(self, served: Served, body: Body, limits: Limits) -> Plan:  # noqa: ARG002 - as every route
        """What is shown, and what else there is."""
        config = self.task.model.config
        told = {
            "model": self.name,
            "served": served.name,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "width": config.hidden_size,
            "words": config.vocab_size,
            "mask": mask_token(self.task.tokenizer),
            "tokens": TOKENS,
            "similar": SENTENCES if served.kind == "embedding" else 0,
        }
        return Plan(None, lambda _: [written(told)])

    def sentence(self, served: Served, body: Body, limits: Limits) -> Plan:  # noqa: ARG002
        """A sentence's tokens, the words for its masks, attention, norms and every layer's guesses."""
        (text,) = texts_of(body.get("text"), "text", Limits(1))
        task = self.task
        try:
            (window,) = tokenize(task.tokenizer, [text])
        except Error as error:
            raise Refused("Tokenizer", str(error)) from error
        most = min(TOKENS, task.longest)
        if len(window) > most:
            raise Refused("Validation", f"the sentence has {len(window)} tokens; at most {most} are shown")
        return Plan(Job(finish=lambda _: looked_at(task, window)), lambda found: [written(found)])


def similar(served: Served, body: Body, limits: Limits) -> Plan:
    """How alike sentences are, each to each, by the served model's vectors."""
    embedder_of(served)
    texts = texts_of(body.get("texts"), "texts", Limits(SENTENCES))
    if len(texts) < 2:
        raise malformed("`texts` must be at least two")
    job = vector_job(served, texts, {"truncate": True}, limits, ("dense",), True)
    return Plan(job, lambda found: [written({"similarity": np.round(found @ found.T, 4).tolist()})])


@ieee
def looked_at(task: FillMask, window: Any) -> dict[str, Any]:
    """A sentence through the model; probabilities of attention as bytes, 255 for 1, in base64: layer, head, query, key."""
    model, tokenizer, ids = task.model, task.tokenizer, window.ids
    layers = [f"encoder.layer.{n}" for n in range(model.config.num_hidden_layers)]
    with trace(model, ["embeddings", *layers, *(f"{layer}.attention.self.probs" for layer in layers)]) as seen:
        last = model.ops.to_numpy(model.packed([ids]).logits)
    streams = [seen[name] for name in ("embeddings", *layers)]
    attention = np.stack([seen[f"{layer}.attention.self.probs"].swapaxes(0, 1) for layer in layers])  # (L, H, T, T)
    mask = tokenizer.token_to_id(mask_token(tokenizer))
    words: dict[int, str] = {}

    def likeliest(scores: Any, count: int) -> list[dict[str, Any]]:
        probabilities = softmax(scores)
        best = np.argsort(-probabilities, kind="stable")[:count].tolist()
        for token in best:
            words.setdefault(token, decode(tokenizer, [token]))
        return [{"token": words[token], "probability": float(probabilities[token])} for token in best]

    guesses = []
    for stream in streams[:-1]:
        with trace(model, [], {layers[-1]: lambda _, x, stream=stream: stream.astype(x.dtype)}):  # type: ignore[misc]
            guesses.append([likeliest(row, GUESSES) for row in model.ops.to_numpy(model.packed([ids]).logits)])
    guesses.append([likeliest(row, GUESSES) for row in last])
    return {
        "tokens": [decode(tokenizer, [token]) for token in ids],
        "masks": [n for n, token in enumerate(ids) if token == mask],
        "candidates": [likeliest(last[n], WORDS) for n, token in enumerate(ids) if token == mask],
        "layers": attention.shape[0],
        "heads": attention.shape[1],
        "attention": base64.b64encode(np.rint(255 * attention).astype(np.uint8).tobytes()).decode(),
        "norms": [np.round(np.linalg.norm(stream, axis=-1), 3).tolist() for stream in streams],
        "lens": guesses,
    }


def _is_masked(folder: Path) -> bool:
    said = read_config(folder).get("architectures")
    return isinstance(said, list) and any(str(one).endswith("ForMaskedLM") for one in said)

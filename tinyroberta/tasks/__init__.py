"""Texts in, answers out: a class for each task of transformers' pipelines, and `task`, which finds it by its name."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import Error

TASKS = {  # a task's name, transformers' where it has one: the file in this folder and the class in it
    "text-classification": ("classify", "TextClassification"),
    "token-classification": ("tag", "TokenClassification"),
    "question-answering": ("answer", "QuestionAnswering"),
    "multiple-choice": ("choose", "MultipleChoice"),
    "fill-mask": ("fill_mask", "FillMask"),
    "feature-extraction": ("features", "FeatureExtraction"),
    "text-generation": ("generate", "TextGeneration"),
    "embed": ("embed", "Embedder"),
    "rerank": ("rerank", "Reranker"),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def task(name: str, model: Any = None, *, tokenizer: Any = None, revision: str | None = None, **running: Any) -> Any:
    """A task by transformers' name: a checkpoint's, a loaded model's, or the embedded one's; mirrors transformers' pipeline().

    model: a folder or Hub repository; a model of this library, with the `tokenizer` that tasks.tokenizer.load_tokenizer gives;
    None for the embedded model. running: load's keywords (backend, dtype, ...) where the model is not loaded yet, and the
    class's own (long, batch_tokens). Raises Error on a name that is none, and as the class's from_pretrained.
    """
    file, kind = TASKS.get(ALIASES.get(name, name), (None, "")) if isinstance(name, str) else (None, "")
    if file is None:
        raise Error(f"there is no task {name!r}; there are {', '.join((*TASKS, *ALIASES))}")
    cls = getattr(import_module(f".{file}", __name__), kind)
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None:
            raise Error("a tokenizer is given with a loaded model; that of a checkpoint is read from its folder")
        return cls.from_pretrained(model, revision=revision, **running)
    if tokenizer is None:
        raise Error(f"{name} of a loaded model needs its tokenizer: tokenizer=tinyroberta.tasks.tokenizer.load_tokenizer(folder)")
    own = {key: running.pop(key) for key in ("long", "batch_tokens") if key in running}
    if running or revision is not None:
        told = ", ".join([*running, *(["revision"] if revision is not None else [])])
        raise Error(f"{told} cannot be given with a model that is loaded: give it to tinyroberta.load")
    return cls(model, tokenizer, **own)

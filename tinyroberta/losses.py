"""The losses of the seven heads, in the logits' dtype; mirrors the losses in transformers' modeling_roberta_prelayernorm.

Labels are integer arrays, and -100 marks a place that does not count. A mean over nothing is NaN, as in PyTorch.
"""

from typing import Any

import numpy as np

from .errors import Error, RangeError

Array = np.ndarray[Any, np.dtype[Any]]

IGNORED = -100


def cross_entropy(logits: Array, labels: Array, ignored: int = IGNORED) -> Array:  # (N, C), (N,) -> ()
    """The mean of -log softmax(logits)[label] over labels that are not `ignored`.

    Raises RangeError on a label outside 0 to C - 1.
    """
    kept = labels != ignored
    logits, labels = logits[kept], labels[kept]
    if labels.size and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise RangeError(
            f"labels hold {wrong}; they must be 0 to {logits.shape[1] - 1}, or {ignored} for places that do not count"
        )
    if not labels.size:
        return np.asarray(np.nan, logits.dtype)
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def log_softmax(x: Array) -> Array:  # (N, C)
    """x - log sum exp(x) of each row."""
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def masked_lm(logits: Array, labels: Array) -> Array:  # (B, S, V), (B, S) -> ()
    """Cross-entropy of every labelled place."""
    check_labels(labels, logits.shape[:2])
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def causal_lm(logits: Array, labels: Array) -> Array:  # (B, S, V), (B, S) -> ()
    """Cross-entropy of every place's logits with the next place's label.

    In the logits' dtype: transformers from 4.57 on computes it in float32 whatever the model's.
    """
    check_labels(labels, logits.shape[:2])
    return masked_lm(logits[:, :-1], labels[:, 1:])


token_classification = masked_lm


def sequence_classification(logits: Array, labels: Array, problem_type: str | None) -> Array:  # (B, C), labels -> ()
    """The problem type's loss; inferred where None: one label is regression, integers are single, others multi-label."""
    C = logits.shape[1]
    if labels.dtype.kind not in "biuf":
        raise Error(f"labels have dtype {labels.dtype}; they must be numbers")
    if problem_type is None:
        problem_type = "regression" if C == 1 else "single_label_classification"
        if C > 1 and labels.dtype.kind not in "iu":
            problem_type = "multi_label_classification"
    if problem_type == "single_label_classification":
        if labels.dtype.kind not in "iu":
            raise Error(f"labels have dtype {labels.dtype}; for {problem_type} they are integers")
        if labels.size != len(logits):
            raise Error(f"labels have shape {labels.shape}; for {problem_type} it must be {(len(logits),)}")
        return cross_entropy(logits, labels.reshape(-1))
    if labels.size != logits.size:
        raise Error(f"labels have shape {labels.shape}; for {problem_type} it must be {logits.shape}")
    y = labels.reshape(logits.shape).astype(logits.dtype)
    if problem_type == "regression":
        return np.asarray(np.square(logits - y).mean())
    terms = np.maximum(logits, 0) - logits * y + np.log1p(np.exp(-np.abs(logits)))
    return np.asarray(terms.mean())


def multiple_choice(logits: Array, labels: Array) -> Array:  # (B, choices), (B,) -> ()
    """Cross-entropy over the choices."""
    check_labels(labels, logits.shape[:1])
    return cross_entropy(logits, labels)


def question_answering(start_logits: Array, end_logits: Array, starts: Array, ends: Array) -> Array:  # (B, S) x2, (B,) x2 -> ()
    """The mean of both positions' cross-entropies; a position past the text does not count, a negative one counts as 0."""
    S = start_logits.shape[1]
    losses = []
    for logits, positions, name in ((start_logits, starts, "start_positions"), (end_logits, ends, "end_positions")):
        if positions.size != len(logits) or positions.dtype.kind not in "iu":
            raise Error(f"{name} are {positions.dtype} of shape {positions.shape}; they must be {len(logits)} integers")
        losses.append(cross_entropy(logits, positions.reshape(-1).clip(0, S), ignored=S))
    return np.asarray((losses[0] + losses[1]) / 2, start_logits.dtype)  # before NumPy 2 a 0-d float32 over 2 is float64


def check_labels(labels: Array, shape: tuple[int, ...]) -> None:
    """Raise Error where labels are not integers of this shape."""
    if labels.shape != shape:
        raise Error(f"labels have shape {labels.shape}; it must be {shape}")
    if labels.dtype.kind not in "iu":
        raise Error(f"labels have dtype {labels.dtype}; they are integers")

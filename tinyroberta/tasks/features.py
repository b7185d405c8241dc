"""Feature extraction: the last hidden states of texts; mirrors transformers' FeatureExtractionPipeline."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .task import Long, Task, answers, by_window, single


class FeatureExtraction(Task):
    """A model without a head; that of any checkpoint will do."""

    head, name = "Model", "feature-extraction"

    def __call__(
        self,
        inputs: Any,
        *,
        return_tensors: bool = False,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """A text -> its tokens' vectors, <s> and </s> among them: a list [1][tokens][D], or an array (1, tokens, D).

        A list gives a list, another iterable a generator, in order. return_tensors: arrays, float32 or the model's own dtype.
        long="window": the windows' vectors, which share no token, one window after another. keep_errors: an Error stands in the
        place of a result. Raises Error on a text that cannot be read, when its turn comes.
        """

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            how: Any = {"long": long, "batch_tokens": batch_tokens, "keep_errors": keep_errors}
            for answer in self.answered(map(single, texts), self._vectors, **how):
                if answer.error is not None:
                    yield answer.error
                    continue
                vectors = np.concatenate(answer.results)[None]
                yield vectors if return_tensors else vectors.tolist()

        return answers(inputs, run)

    def _vectors(self, windows: list[Any]) -> list[Any]:
        return by_window(self.packed(windows)["last_hidden_state"], windows)

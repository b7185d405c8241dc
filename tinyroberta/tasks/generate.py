"""Text generation: prompts continued, whole or token by token; mirrors transformers' TextGenerationPipeline (4.57)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Error
from ..generation import begin
from .batches import Answered, Reading
from .task import Long, Task, answers, single
from .tokenizer import decode, tokenize

DEFAULTS = {"do_sample": True, "temperature": 0.7}  # the pipeline's, where neither the caller nor the checkpoint says it
NEW_TOKENS = 256
HALF = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a character decode to while some are missing


class TextGeneration(Task):
    """A causal language model."""

    head, name = "ForCausalLM", "text-generation"

    def __call__(
        self,
        inputs: Any,
        *,
        return_full_text: bool = True,
        return_tensors: bool = False,
        clean_up_tokenization_spaces: bool = True,
        skip_special_tokens: bool = True,
        add_special_tokens: bool | None = None,
        long: Long | None = None,
        keep_errors: bool = False,
        **settings: Any,
    ) -> Any:
        """A prompt -> a list of {"generated_text": ...}, one for each of num_return_sequences.

        A list of prompts gives a list of lists, another iterable gives a generator, in order. settings: generate's
        (max_new_tokens, max_length, do_sample, temperature, top_k, num_beams, stop_strings, seed, ...); where neither they nor
        the checkpoint say otherwise, 256 tokens or as many as the positions leave are sampled at a temperature of 0.7. A prompt
        is generated from by itself, so that what it gives depends on no other, `seed` included. return_full_text: the prompt
        stands before what follows; return_tensors: a list of all ids as "generated_token_ids" instead. A prompt is begun as the
        tokenizer begins a text, and not ended: the pipeline ends it too, which is add_special_tokens=True, while False gives its
        own tokens alone. long="truncate" keeps a prompt's end. keep_errors: an Error stands in the place of a result. Raises
        Error on settings that cannot be, and on a prompt that leaves no room, when its turn comes.
        """
        long = self._long(long)
        settings = self._settings(settings)

        def compute(prompts: list[Any]) -> list[Any]:
            return [self._generated(prompt.ids, settings) for prompt in prompts]

        def result(answer: Answered) -> list[dict[str, Any]]:
            ids, sequences = answer.results[0]
            if return_tensors:
                return [{"generated_token_ids": row} for row in sequences]
            how = {"skip_special_tokens": skip_special_tokens, "clean_up": clean_up_tokenization_spaces}
            known = len(decode(self.tokenizer, ids, **how))
            texts = [decode(self.tokenizer, row, **how)[known:] for row in sequences]
            return [{"generated_text": (answer.text if return_full_text else "") + text} for text in texts]

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            how: Any = {"add_special_tokens": add_special_tokens, "new": settings.get("max_new_tokens")}
            answered = self.answered(map(single, texts), compute, long=long, batch_tokens=1, keep_errors=keep_errors, **how)
            for answer in answered:
                error = answer.error or next((found for found in answer.results if isinstance(found, Error)), None)
                if error is not None and not keep_errors:
                    raise error
                yield error or result(answer)

        return answers(inputs, run)

    def stream(
        self,
        prompt: str,
        *,
        skip_special_tokens: bool = True,
        add_special_tokens: bool | None = None,
        long: Long | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """What follows a prompt, in pieces as they are generated: joined they are the text that a call without clean-up gives.

        A character whose bytes are not all there yet is held back. The arguments are those of a call; beams and several sequences
        cannot be streamed. Raises Error at once on what cannot be.
        """
        if settings.setdefault("num_return_sequences", 1) != 1:
            raise Error(f"num_return_sequences is {settings['num_return_sequences']}; one text can be streamed")
        settings = self._settings(settings)
        how = {"add_special_tokens": add_special_tokens, "new": settings.get("max_new_tokens")}
        with self._reading:
            (reading,) = self.read([single(prompt)], self._long(long), **how)
        if isinstance(reading, Error):
            raise reading
        ids = reading[0].ids
        steps = self.model.stream([ids], [[1] * len(ids)], **self._with_room(ids, settings))

        def pieces() -> Iterator[str]:
            known, told, tokens = len(decode(self.tokenizer, ids, skip_special_tokens)), "", list(ids)
            text = ""
            for step in steps:
                tokens.append(int(step[0]))
                text = decode(self.tokenizer, tokens, skip_special_tokens)[known:]
                whole = text.rstrip(HALF)
                if len(whole) > len(told) and whole.startswith(told):
                    yield whole[len(told) :]
                    told = whole
            if len(text) > len(told):
                yield text[len(told) :]

        return pieces()

    def read(self, texts: list[Any], long: Long, **how: Any) -> list[Reading]:
        """A prompt as one window, which leaves room for `new` tokens."""
        return [self._prompt(text, long, **how) for text in texts]

    def _prompt(self, text: Any, long: Long, *, add_special_tokens: bool | None, new: int | None) -> Reading:
        if isinstance(text, Error):
            return text
        try:
            (encoding,) = tokenize(self.tokenizer, [text], add_special_tokens=add_special_tokens is not False)
        except Error as error:
            return error
        ids, new = encoding.ids, 1 if new is None else new
        if add_special_tokens is None:  # without those behind the text; of no text, the first
            ids = ids[: max((place for place, part in enumerate(encoding.sequence_ids) if part is not None), default=0) + 1]
        room = self.longest - new
        if not ids:
            return Error("a prompt has no tokens")
        if max(ids) >= self.model.config.vocab_size:
            told = f"the model has {self.model.config.vocab_size} words: they do not belong together"
            return Error(f"the tokenizer gave id {max(ids)}, {told}")
        if len(ids) <= room:
            return [Prompt(ids)]
        if room < 1 or long == "error":
            told = f"a prompt has {len(ids)} tokens and {new} more are to follow; this model reads at most {self.longest}"
            return Error(f'{told}: cut it, or ask for a smaller max_new_tokens, or for long="truncate"')
        return [Prompt(ids[-room:], cut=True)]

    def _generated(self, ids: list[int], settings: Mapping[str, Any]) -> Any:
        """A prompt's ids and the sequences that it begins; the Error that it deserves."""
        try:
            return ids, self.model.generate([ids], [[1] * len(ids)], **self._with_room(ids, settings)).tolist()
        except Error as error:
            return error

    def _settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's settings, and the pipeline's where the checkpoint says nothing; raises Error on what cannot be."""
        stored = self.model.generation_config or {}
        found = {name: value for name, value in DEFAULTS.items() if stored.get(name) is None} | dict(given)
        found |= {"tokenizer": self.tokenizer, "return_dict_in_generate": False}
        checked = self.model.generation_settings(self._with_room([0], found))
        for name in ("return_dict_in_generate", "streamer"):
            checked.pop(name, None)
        begin(self.model, [[0]], [[1]], **checked)
        return found

    def _with_room(self, ids: list[int], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with a length: where none is said, as many tokens as the positions leave, and at most NEW_TOKENS."""
        said = {**(self.model.generation_config or {}), **settings}
        if any(said.get(name) is not None for name in ("max_length", "max_new_tokens")):
            return dict(settings)
        return {**settings, "max_new_tokens": min(NEW_TOKENS, self.longest - len(ids))}

    def _long(self, long: Long | None) -> Long:
        long = self.long if long is None else long
        if long == "window":
            raise Error('text generation reads a prompt at once: long must be "error" or "truncate"')
        return long


@dataclass
class Prompt:
    """A prompt's ids, of which the beginning may have been cut off."""

    ids: list[int]
    cut: bool = False

    @property
    def overflowing(self) -> bool:
        """Whether something was cut, as an Encoding says it."""
        return self.cut

    def __len__(self) -> int:
        return len(self.ids)

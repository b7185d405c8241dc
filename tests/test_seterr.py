"""What np.seterr says changes nothing: every public call gives the same bits, and neither raises nor warns.

The models hold numbers that underflow, overflow and become NaN on every backend, so that a call without its own state is seen.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_for_tests import Arrays, flatten, new_model

import tinyroberta
from tinyroberta import EncoderDecoderModel, RobertaPreLayerNormConfig
from tinyroberta.backends import PRECISIONS
from tinyroberta.convert import convert
from tinyroberta.models import CLASSES
from tinyroberta.tasks.fill_mask import fill_mask
from tinyroberta.tasks.tokenizer import load_tokenizer

FOLDER = Path(__file__).parent
DEMO = Path(tinyroberta.__file__).parent / "demo"
CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
    max_position_embeddings=40, type_vocab_size=1, num_labels=2, hidden_act="mish", decoder_start_token_id=0,
)  # fmt: skip
DECODING = dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True)
IDS = np.array([[0, 5, 6, 7, 8, 2], [0, 9, 10, 2, 1, 1]])
MASKS = {"padded": IDS != 1, "fractional": np.where(IDS == 1, 2.5, 1.0)}  # 1 - 2.5 times the least number overflows
RUNNING = [
    *({"backend": "numpy", "dtype": dtype} for dtype in ("float32", "float64")),
    {"backend": "numpy", "reproducible": True},
    *({"backend": "cpu", "matmul_precision": precision} for precision in PRECISIONS),
    {"backend": "cpu", "reproducible": True},
]
LABELS = {
    "ForCausalLM": {"labels": IDS},
    "ForMaskedLM": {"labels": IDS},
    "ForSequenceClassification": {"labels": np.array([[0.0, 1.0], [1.0, 1.0]])},
    "ForMultipleChoice": {"labels": np.array([1, 0])},
    "ForTokenClassification": {"labels": IDS % 2},
    "ForQuestionAnswering": {"start_positions": np.array([0, 1]), "end_positions": np.array([1, 2])},
}

running = pytest.mark.parametrize("running", RUNNING, ids=lambda running: "-".join(map(str, running.values())))


@pytest.fixture(params=[{"all": "raise"}, {"under": "raise"}], ids=str)
def strict(request: pytest.FixtureRequest) -> dict[str, str]:
    """A state that people set."""
    return request.param


def bits(call: Callable[[], Any], state: dict[str, str]) -> Arrays:
    """What a call gives under a state of NumPy's, which is there again when it returns."""
    with np.errstate(**state):
        told = np.geterr()
        found = call()
        assert np.geterr() == told
    return flatten(found.items() if hasattr(found, "items") else enumerate(found if isinstance(found, tuple | list) else [found]))


def hold(call: Callable[[], Any], strict: dict[str, str]) -> None:
    """The call, under a strict state, gives the bits that it gives under NumPy's own."""
    expected, found = bits(call, {"all": "ignore"}), bits(call, strict)
    assert sorted(found) == sorted(expected)
    assert found
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@functools.cache
def extreme(name: str, config: RobertaPreLayerNormConfig) -> Arrays:
    """Tensors of which one layer has scores far apart, another numbers near the least and the largest of float32."""
    cls = CLASSES[f"RobertaPreLayerNorm{name}"]
    with np.errstate(all="ignore"):
        tensors = dict(new_model(cls, config, backend="numpy").tensors)
        for part, factor in (
            ("0.attention.self.query", 1e4),
            ("1.intermediate.dense", 1e30),
            ("1.attention.output.dense", 1e-38),
        ):
            tensors[f"encoder.layer.{part}.weight"] = (tensors[f"encoder.layer.{part}.weight"] * factor).astype(np.float32)
    words = tensors["embeddings.word_embeddings.weight"].copy()
    words[9] = 1e30  # whose variance overflows
    decoder = {name: words for name in tensors if name == "lm_head.decoder.weight"}
    return tensors | {"embeddings.word_embeddings.weight": words} | decoder


def of(name: str, config: RobertaPreLayerNormConfig = CONFIG, **running: Any) -> Any:
    return CLASSES[f"RobertaPreLayerNorm{name}"](config, extreme(name, config), **running)


@running
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("name", [name.removeprefix("RobertaPreLayerNorm") for name in CLASSES])
def test_every_class(name: str, mask: str, running: dict[str, Any], strict: dict[str, str]) -> None:
    config = dataclasses.replace(DECODING, add_cross_attention=False) if name == "ForCausalLM" else CONFIG
    inputs = (IDS, MASKS[mask])
    if name == "ForMultipleChoice":
        inputs = tuple(np.stack([x, x[::-1]], 1) for x in inputs)

    def call(**given: Any) -> Any:
        model = of(name, config, **running)  # drawn and prepared under that state too
        given = {"attention_mask": inputs[1], "output_hidden_states": True, "output_attentions": True, **given}
        return model(inputs[0], **given)

    hold(call, strict)
    hold(lambda: call(output_hidden_states=False, output_attentions=False), strict)
    if name in LABELS:
        hold(lambda: call(**LABELS[name]), strict)


@running
def test_encoder_decoder_and_generation(running: dict[str, Any], strict: dict[str, str]) -> None:
    config = dataclasses.replace(DECODING, eos_token_id=None)
    projection = {"weight": np.eye(32, 16) * 1e38 + 1e-300, "bias": np.full(32, 3e38)}  # past float32 both ways, as its sum is
    encoder, decoder = of("Model", **running), of("ForCausalLM", config, **running)
    pair = EncoderDecoderModel(encoder, decoder)
    hold(lambda: pair(IDS, IDS != 1, labels=IDS), strict)
    hold(lambda: pair.generate(IDS, IDS != 1, max_length=5), strict)
    wide = dataclasses.replace(CONFIG, hidden_size=16)
    narrow = tinyroberta.RobertaPreLayerNormModel(wide, **running)
    hold(lambda: EncoderDecoderModel(narrow, decoder, projection)(IDS, labels=IDS), strict)
    hold(lambda: EncoderDecoderModel(narrow, decoder, projection).generate(IDS, IDS != 1, max_length=5), strict)
    choices = (
        {"repetition_penalty": 1e300},
        {"do_sample": True, "temperature": 1e-3, "top_p": 0.9, "min_p": 1e-300, "typical_p": 0.9, "seed": 1},
        {"num_beams": 3, "do_sample": True, "temperature": 1e-300, "seed": 1},
    )
    writer = new_model(
        CLASSES["RobertaPreLayerNormForCausalLM"], dataclasses.replace(config, add_cross_attention=False), **running
    )
    for choice in choices:
        hold(lambda choice=choice: writer.generate(IDS, IDS != 1, max_new_tokens=3, **choice), strict)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_weights_of_every_format(backend: str, strict: dict[str, str]) -> None:
    for folder in ("golden/base", "golden_tf/Model", "golden_flax/Model", "golden_flax/chunked_bfloat16", "torch_files/model"):
        hold(lambda folder=FOLDER / folder: tinyroberta.load(folder, backend=backend).tensors, strict)


def test_fresh_models_and_new_words(strict: dict[str, str]) -> None:
    tiny = dataclasses.replace(CONFIG, initializer_range=1e-42)
    tensors = tinyroberta.RobertaPreLayerNormModel(tiny, backend="numpy").tensors
    models = [tinyroberta.RobertaPreLayerNormModel(tiny, tensors, backend="numpy") for _ in range(2)]
    hold(lambda: tinyroberta.RobertaPreLayerNormModel(tiny, backend="numpy").tensors, strict)
    hold(lambda: models.pop().resize_token_embeddings(tiny.vocab_size + 9), strict)


def test_surgery_and_saving(tmp_path: Path, strict: dict[str, str]) -> None:
    def call() -> Any:
        model = of("ForMaskedLM", backend="numpy")
        model.resize_token_embeddings(50)
        model.prune_heads({0: [1]})
        model.set_input_embeddings(model.get_input_embeddings() * np.float32(0.5))
        model.save_pretrained(tmp_path / "saved")
        return tinyroberta.load(tmp_path / "saved", backend="numpy")(IDS)

    hold(call, strict)


def test_convert_and_fill_mask(tmp_path: Path, strict: dict[str, str]) -> None:
    cls = CLASSES["RobertaPreLayerNormForMaskedLM"]
    small = new_model(cls, CONFIG, backend="numpy")
    tensors = dict(small.tensors)
    tensors["lm_head.dense.weight"] = tensors["lm_head.dense.weight"] * np.float32(1e-7)  # less than float16's least
    cls(CONFIG, tensors, backend="numpy").save_pretrained(tmp_path / "source")
    numbers = iter(range(9))

    def converted() -> Any:
        folder = tmp_path / str(next(numbers))
        convert(tmp_path / "source", folder, "float16")
        return tinyroberta.load(folder, backend="numpy").tensors

    hold(converted, strict)
    model, tokenizer = tinyroberta.load(DEMO, backend="numpy"), load_tokenizer(DEMO)
    bias = np.where(np.arange(model.config.vocab_size) < 9, np.float32(-1e4), 0)  # words that no exp reaches
    model = type(model)(model.config, model.tensors | {"lm_head.decoder.bias": bias}, backend="numpy")
    hold(lambda: [c.probability for c in fill_mask(model, tokenizer, ["He opened the <mask>."])[0]], strict)

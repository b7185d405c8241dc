"""Write tests/golden_tf: the seven TensorFlow classes' tiny random weights and the outputs TensorFlow computed from them.

Needs transformers 4.57.6, tensorflow-cpu 2.21.0, tf-keras 2.21.0 and h5py; run as `python tools/make_golden_tf.py`.
"""

import os
from pathlib import Path

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import numpy as np
import transformers

FOLDER = Path(__file__).parents[1] / "tests" / "golden_tf"
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 18,
    "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-5,
}  # fmt: skip
HEADS = {
    "Model": {},
    "ForCausalLM": {"is_decoder": True, "add_cross_attention": True},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"num_labels": 3},
    "ForMultipleChoice": {},
    "ForTokenClassification": {"num_labels": 3},
    "ForQuestionAnswering": {},
}
SMALL = {"num_hidden_layers": 1}  # the bare model that is saved in the rarer formats


def drawn(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A weight to tell every mistake by: gains around 1, biases and all else around 0, none of them constant."""
    gain = name.endswith(("gamma:0", "scale"))
    return (float(gain) + random.normal(0, 0.3, shape)).astype(np.float32)


def inputs_of(head: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Ids with padding, its mask and token types: (2, 7), or (2, 3, 7) for multiple choice."""
    shape = (2, 3, 7) if head == "ForMultipleChoice" else (2, 7)
    ids, mask = random.integers(4, SIZES["vocab_size"], shape), np.ones(shape, np.int64)
    ids[-1, ..., 5:], mask[-1, ..., 5:] = 1, 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, shape)}
    if head == "ForCausalLM":
        given["encoder_hidden_states"] = random.normal(0, 1, (2, 4, SIZES["hidden_size"])).astype(np.float32)
        given["encoder_attention_mask"] = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    return given


def outputs_of(output: transformers.utils.ModelOutput) -> dict[str, np.ndarray]:
    """The arrays of an output, by field."""
    return {f"output.{field}": np.asarray(value) for field, value in output.items() if field != "past_key_values"}


if __name__ == "__main__":
    from transformers.models.roberta_prelayernorm import modeling_tf_roberta_prelayernorm as tensorflow_classes

    for number, (head, settings) in enumerate([*HEADS.items(), ("Model", SMALL)]):
        random = np.random.default_rng(number)
        config = transformers.RobertaPreLayerNormConfig(**SIZES | settings)
        model = getattr(tensorflow_classes, f"TFRobertaPreLayerNorm{head}")(config)
        given = inputs_of(head, random)
        model(given)
        for weight in model.weights:
            weight.assign(drawn(weight.name, tuple(weight.shape), random))
        outputs = given | outputs_of(model(given))
        if settings is SMALL:
            model.save_pretrained(FOLDER / "safetensors", safe_serialization=True)
            model.save_pretrained(FOLDER / "sharded", safe_serialization=False, max_shard_size="8KB")
            np.savez_compressed(FOLDER / "small.npz", **outputs)
        else:
            model.save_pretrained(FOLDER / head, safe_serialization=False)
            np.savez_compressed(FOLDER / head / "outputs.npz", **outputs)

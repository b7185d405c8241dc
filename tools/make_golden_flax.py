"""Write tests/golden_flax: the seven Flax classes' tiny random weights and the outputs Flax computed from them.

Needs transformers 4.57.6, flax 0.12.8 and jax 0.10.2; run as `python tools/make_golden_flax.py`.
"""

from pathlib import Path

import flax
import jax.numpy as jnp
import numpy as np
import transformers
from make_golden_tf import HEADS, SIZES, SMALL, drawn, inputs_of, outputs_of
from transformers.models.roberta_prelayernorm import modeling_flax_roberta_prelayernorm as flax_classes

FOLDER = Path(__file__).parents[1] / "tests" / "golden_flax"


def redrawn(tree: dict, random: np.random.Generator) -> dict:
    """The same tree with other numbers in it."""
    return {
        name: redrawn(value, random) if isinstance(value, dict) else jnp.asarray(drawn(name, value.shape, random))
        for name, value in tree.items()
    }


if __name__ == "__main__":
    for number, (head, settings) in enumerate([*HEADS.items(), ("Model", SMALL)]):
        random = np.random.default_rng(number)
        config = transformers.RobertaPreLayerNormConfig(**SIZES | settings)
        model = getattr(flax_classes, f"FlaxRobertaPreLayerNorm{head}")(config)
        model.params = redrawn(model.params, random)
        given = inputs_of(head, random)
        outputs = given | outputs_of(model(**given))
        if settings is SMALL:
            model.save_pretrained(FOLDER / "safetensors", safe_serialization=True)
            model.save_pretrained(FOLDER / "sharded", max_shard_size="8KB")
            np.savez_compressed(FOLDER / "small.npz", **outputs)
            flax.serialization.MAX_CHUNK_SIZE = 300  # stands for its 2^30 bytes
            model.save_pretrained(FOLDER / "chunked_bfloat16", params=model.to_bf16(model.params))
        else:
            model.save_pretrained(FOLDER / head)
            np.savez_compressed(FOLDER / head / "outputs.npz", **outputs)

"""Write tests/golden_numerics: tiny checkpoints, and what a PyTorch program with one known mistake each computes with them.

python tools/make_golden_numerics.py        needs torch; tests/test_explain.py reads what it writes without it
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from numerics_cases import CASES, MODELS, SIZES, STORED, inputs, planted, tensors  # noqa: E402
from torch_roberta import Mistakes, run  # noqa: E402

from tinyroberta.config import config_from  # noqa: E402
from tinyroberta.family import KIN  # noqa: E402


def main() -> None:
    """Write a folder for each model, and an .npz for each mistake: float32, named as transformers names modules."""
    folder = ROOT / "tests" / "golden_numerics"
    for name in sorted({CASES[case].model for case in STORED}):
        config = config_from(SIZES | MODELS[name])
        cls = KIN[config.model_type]["ForMaskedLM"]
        cls(config, tensors(cls.encoder_shapes(config) | cls.head_shapes(config))).save_pretrained(folder / name)
    for name in STORED:
        case = CASES[name]
        config = SIZES | MODELS[case.model]
        cls = KIN[config["model_type"]]["ForMaskedLM"]
        held = tensors(cls.encoder_shapes(config_from(config)) | cls.head_shapes(config_from(config)))
        given = inputs(case.model)
        arrays = run(config, held, given["input_ids"], given["attention_mask"], Mistakes(**planted(case.mistakes)))
        np.savez_compressed(folder / f"{name}.npz", **given, **{name: x.astype(np.float32) for name, x in arrays.items()})


if __name__ == "__main__":
    main()

"""The package as installed: what importing it imports, what the wheel holds, what the card says."""

import itertools
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tinyroberta
from tinyroberta.demo import FOLDER

EXTRAS = ("numba", "cupy", "huggingface_hub", "tokenizers", "rich", "torch", "transformers", "threadpoolctl", "hypothesis")
EXTRAS += ("pyarrow", "ray")


def test_importing_it_imports_no_extra() -> None:
    script = "import sys, tinyroberta; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script, *EXTRAS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_and_running_a_model_imports_no_extra() -> None:
    script = (
        "import sys, tinyroberta; from tinyroberta.demo import FOLDER\n"
        "tinyroberta.load(FOLDER)([[0, 9, 2]]); print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    for _ in range(2):  # what did not come with the package, and is not compiled yet, needs Numba once
        done = subprocess.run([sys.executable, "-c", script, *EXTRAS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_exist() -> None:
    assert all(hasattr(tinyroberta, name) for name in tinyroberta.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", tinyroberta.__version__)


def test_the_embedded_model_is_a_checkpoint_of_the_hubs_layout_and_small() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["RobertaPreLayerNormForMaskedLM"]
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 12 * 2**20
    model = tinyroberta.load(FOLDER)
    assert {value.dtype.name for value in model.tensors.values()} == {"bfloat16"}
    card = (FOLDER / "README.md").read_text()
    assert f"{model.num_parameters:,} parameters" in card


def test_core_dependencies_are_three() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert sorted(re.match(r"[\w-]+", d).group() for d in project["dependencies"]) == ["ml_dtypes", "numpy", "safetensors"]


def test_every_requirement_says_one_least_version_for_ci() -> None:
    tools = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "least_versions.py"))
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    pins = tools["least"](project)
    extras = (project["optional-dependencies"][name] for name in ("cpu", "hub", "text", "parquet", "test"))
    for requirement in itertools.chain(project["dependencies"], *extras):
        plain = re.sub(r"\[\w+\]", "", requirement)
        assert requirement.startswith("tinyroberta[") or plain in {f"{name}>={pins[name]}" for name in pins}
    for wrong in ("numpy", "numpy<3", "numpy>=1.26,<3", "numpy>=2"):
        changed = {**project, "dependencies": [*project["dependencies"], wrong]}
        with pytest.raises(ValueError, match="one least version"):
            tools["least"](changed)

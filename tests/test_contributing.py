"""CONTRIBUTING.md's table is true: what it tells to touch for an addition is enough, in a copy in which just that is added."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# `| an activation | `tinyroberta/file.py` | what in it |`, the first cell empty where the addition is the row's above
ROW = re.compile(r"^\| *(?P<what>[^|`]*?) *\| *`(?P<file>[^`|]+)` *\| *[^|]+\|$", re.MULTILINE)


def table() -> dict[str, set[str]]:
    """The files that CONTRIBUTING.md names for each addition."""
    files: dict[str, set[str]] = {}
    what = ""
    for row in ROW.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        what = row["what"] or what
        files.setdefault(what, set()).add(row["file"])
    return files


class Addition(NamedTuple):
    """One of a kind: by file what is inserted, each text before a place that the file has once, or all of a file that is new;
    and the part of the suite that covers it: files of tests, what their names have, how many there are at least.
    """

    inserted: dict[str, list[tuple[str, str]] | str]
    files: list[str]
    named: str
    least: int
    needs: tuple[str, ...] = ()  # what else of tests/ they read


HEAD = Addition(
    {
        "tinyroberta/heads.py": [
            (
                "# What they refuse,",
                "def mean_labels(ops: Backend, x: Encoded) -> Fields:\n"
                '    return {"logits": ops.linear(x.rows.mean(x.last), **x.weights["classifier"])}\n\n\n',
            ),
            (
                '    "ForQuestionAnswering": Head(',
                '    "ForMeanClassification": Head(outputs.SequenceClassifierOutput, mean_labels,\n'
                '        lambda config: dense("classifier", config.num_labels or 0, config.hidden_size),\n'
                '        loss=losses.sequence_classification, loss_reads=("problem_type",)),\n',
            ),
        ],
        "tinyroberta/models.py": [
            (
                "class RobertaPreLayerNormForQuestionAnswering(",
                "class RobertaPreLayerNormForMeanClassification(RobertaPreLayerNormPreTrainedModel):\n"
                '    """An encoder with labels for the mean of a text\'s tokens."""\n\n'
                '    head = HEADS["ForMeanClassification"]\n\n'
                "    @ieee\n"
                "    def __call__(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **options: Any) -> Any:\n"
                "        return self._answer(Given(input_ids, attention_mask, None, None, None, None), options, labels)\n\n\n",
            ),
            ("        RobertaPreLayerNormForQuestionAnswering,\n", "        RobertaPreLayerNormForMeanClassification,\n"),
        ],
        "tests/test_mean_classification.py": """from pathlib import Path

import numpy as np
import pytest
from models_for_tests import new_model

import tinyroberta
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN


@pytest.mark.parametrize("model_type", CONFIGS)
def test_mean_classification(model_type: str, tmp_path: Path) -> None:
    config = CONFIGS[model_type](
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    cls = KIN[model_type]["ForMeanClassification"]
    assert getattr(tinyroberta, cls.__name__) is cls
    model = new_model(cls, config, backend="numpy")
    model.save_pretrained(tmp_path)
    ids, mask = [[1, 1, 5, 6], [7, 8, 9, 10]], [[0, 0, 1, 1], [1, 1, 1, 1]]
    found = tinyroberta.load(tmp_path, "numpy")(ids, mask, np.array([0, 2]))
    encoder = KIN[model_type]["Model"](config, {n: x for n, x in model.tensors.items() if "classifier" not in n}, backend="numpy")
    states = encoder(ids, mask).last_hidden_state
    means = np.stack([states[0, 2:].mean(0), states[1].mean(0)])
    wanted = means @ model.tensors["classifier.weight"].T + model.tensors["classifier.bias"]
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-5, atol=1e-6)
    assert found.loss > 0
""",
    },
    ["test_mean_classification.py", "test_layers.py"],
    "mean_classification or upward or circle",
    7,
)

FAMILY = Addition(
    {
        "tinyroberta/weights/names.py": [
            ('    "xlm-roberta-xl": Family(', '    "bookroberta": Family("BookRoberta", "book.", pre_norm=True),\n')
        ],
        "tinyroberta/config.py": [
            (
                "@dataclass(frozen=True)\nclass XLMRobertaXLConfig(",
                '@dataclass(frozen=True)\nclass BookRobertaConfig(RobertaPreLayerNormConfig):\n    """Books."""\n\n'
                '    model_type: str = "bookroberta"\n\n\n',
            ),
            ("XLMRobertaXLConfig)\n}", "BookRobertaConfig, "),
        ],
        "tinyroberta/__init__.py": [
            ("CamembertConfig, RobertaConfig", "BookRobertaConfig, "),
            ('    "Cache",\n', '    "BookRobertaConfig",\n'),
        ],
        "tests/test_bookroberta.py": """from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from models_for_tests import new_model

import tinyroberta
from tinyroberta.heads import HEADS


@pytest.mark.parametrize("head", HEADS)
def test_bookroberta(head: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = tinyroberta.BookRobertaConfig(**sizes, is_decoder="Causal" in head)
    cls, like = getattr(tinyroberta, f"BookRoberta{head}"), getattr(tinyroberta, f"RobertaPreLayerNorm{head}")
    model = new_model(cls, config, backend="numpy")
    model.save_pretrained(tmp_path)
    again = tinyroberta.load(tmp_path, "numpy")
    assert type(again) is cls
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("book.") for name in stored) == (head != "Model")
    ids = np.array([[[3, 4, 5], [6, 7, 8]]])[:, : 2 if "Choice" in head else 1]
    ids = ids if "Choice" in head else ids[0]
    kin = like(tinyroberta.RobertaPreLayerNormConfig(**sizes, is_decoder="Causal" in head), model.tensors, backend="numpy")
    np.testing.assert_array_equal(again(ids).to_tuple()[0], kin(ids).to_tuple()[0])
""",
    },
    ["test_bookroberta.py", "test_layers.py"],
    "bookroberta or upward or circle",
    9,
)

ACTIVATION = Addition(
    {
        "tinyroberta/backends/numpy.py": [('    "sqrtsoftplus": ', '    "softsign": lambda x: x / (1 + np.abs(x)),\n')],
        "tinyroberta/backends/bitwise.py": [
            ("def sqrtsoftplus(", "def softsign(x: Any) -> Any:\n    return x / (ONE + where(x < ZERO, -x, x))\n\n\n"),
            ('    "sqrtsoftplus": ', '    "softsign": softsign,\n'),
        ],
        "tinyroberta/backends/cupy/ops.py": [("}  # fmt: skip", '    "softsign": 16,\n')],
        "tinyroberta/backends/cupy/kernels/activation.cuh": [
            ("    default:", "    case 16:\n      return x / (1.f + fabsf(x));  // softsign\n")
        ],
        "tests/test_numpy_backend.py": [('        "sqrtsoftplus": ', '        "softsign": x / (1 + abs(x)),\n')],
    },
    ["test_numpy_backend.py", "test_bitwise.py", "test_numba_backend.py", "test_cupy_backend.py"],
    "softsign or test_every_activation",
    4,
    ("cuda_on_cpu", "golden", "test_golden.py"),
)

FORMAT = Addition(
    {
        "tinyroberta/weights/npz.py": '''"""NumPy's own archives of arrays."""

from pathlib import Path

import numpy as np

from .safetensors import Array

SINGLE = "model.npz"


class Arrays(dict[str, Array]):
    """Arrays by name (checkpoint.Stored)."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as held:
            super().__init__(held)
        self.aliases: dict[str, str] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self[name].shape


def open_npz(path: Path) -> Arrays:
    """The tensors of a model.npz, or of a folder that holds one."""
    return Arrays(path / SINGLE if path.is_dir() else path)
''',
        "tinyroberta/weights/checkpoint.py": [
            ("from .files import", "from . import npz\n"),
            (")\nFAIRSEQ = ", '    _format("npz", npz.SINGLE, npz.open_npz),\n'),
        ],
        "tests/test_npz.py": """from pathlib import Path

import numpy as np

import tinyroberta
from tinyroberta.convert import convert
from tinyroberta.inspect import inspect
from tinyroberta.weights import hub
from tinyroberta.weights.checkpoint import open_checkpoint


def test_npz(tmp_path: Path) -> None:
    config = tinyroberta.RobertaPreLayerNormConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=20
    )
    model = tinyroberta.RobertaPreLayerNormForMaskedLM(config, backend="numpy")
    model.save_pretrained(tmp_path / "safetensors")
    stored = open_checkpoint(tmp_path / "safetensors")
    (folder := tmp_path / "npz").mkdir()
    np.savez(folder / "model.npz", **{name: stored[name] for name in stored})
    (tmp_path / "safetensors" / "config.json").rename(folder / "config.json")
    ids = np.arange(12).reshape(2, 6) + 3
    convert(folder, tmp_path / "converted")
    for path in (folder, folder / "model.npz", tmp_path / "converted"):
        np.testing.assert_array_equal(tinyroberta.load(path, "numpy")(ids).logits, model(ids).logits)
    assert inspect(folder)["format"] == "npz"
    assert inspect(folder)["problem"] is None
    assert "model.npz" in hub.FILES
""",
    },
    ["test_npz.py", "test_checkpoint.py"],
    "test_npz or format",
    2,
    ("golden", "torch_files", "torch_writer.py"),
)

LEVEL = Addition(
    {
        "tinyroberta/backends/__init__.py": [('"high", "medium")', '"higher", ')],
        "tinyroberta/backends/bitwise.py": [('"high": ((2, 2), (2, 3)),', '"higher": ((2, 3), (2, 3)), ')],
        "tinyroberta/backends/numba/products/levels.py": [
            ('    "high": ', '    "higher": Level(TWO_DIGITS, (3, 3), digit_tiles, digit_dots),\n')
        ],
        "tinyroberta/backends/cupy/weights.py": [('"high": F16', '"higher": FLOAT, ')],
        "tests/test_numba_backend.py": [
            ('"high": 2e-4, "medium": 5e-3}', '"higher": 1e-4, '),
            ('"high": 2.0**-12.5', '"higher": 2.0**-14, '),
        ],
        "tests/test_cupy_backend.py": [('    "high": 2e-3,', '    "higher": 2e-6,\n')],
    },
    ["test_bitwise.py", "test_numba_backend.py", "test_cupy_backend.py"],
    "higher and (linear or (every_class and Model and own))",
    12,
    ("cuda_on_cpu", "golden", "test_golden.py", "test_numpy_backend.py"),
)

ADDITIONS = {
    "a head": HEAD,
    "a family": FAMILY,
    "an activation": ACTIVATION,
    "a weight format": FORMAT,
    "a precision level": LEVEL,
}


def test_every_addition_of_the_table_is_tried() -> None:
    named = {
        what: {
            file.replace("FORMAT", "npz").replace("HEAD", "mean_classification").replace("FAMILY", "bookroberta")
            for file in files
        }
        for what, files in table().items()
    }
    assert named == {what: set(addition.inserted) for what, addition in ADDITIONS.items()}


@pytest.mark.parametrize("what", ADDITIONS)
def test_what_the_table_names_is_enough(what: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    addition = ADDITIONS[what]
    shutil.copytree(ROOT / "tinyroberta", tmp_path / "tinyroberta", ignore=shutil.ignore_patterns("__pycache__", "demo"))
    (tmp_path / "tests").mkdir()
    for name in {"models_for_tests.py", *addition.files, *addition.needs}:
        if (held := ROOT / "tests" / name).is_dir():
            (tmp_path / "tests" / name).symlink_to(held)
        elif held.is_file():
            shutil.copy(held, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, texts in addition.inserted.items():
        path = tmp_path / file
        if isinstance(texts, str):
            assert not path.exists()
            path.write_text(texts, encoding="utf-8")
            continue
        for place, text in texts:
            content = path.read_text(encoding="utf-8")
            assert content.count(place) == 1, (file, place)
            path.write_text(content.replace(place, text + place), encoding="utf-8")
    given = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "kernels"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", addition.named]
    command += [f"tests/{file}" for file in addition.files]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | given, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed
    assert int(passed[1]) >= addition.least, done.stdout

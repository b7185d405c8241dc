"""CONTRIBUTING.md's table is true: what it tells to touch for an addition is enough, in a copy in which just that is added."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.numpy

from tinyroberta.family import OWN, named
from tinyroberta.heads import HEADS
from tinyroberta.weights.names import FAMILIES

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


class Golden(NamedTuple):
    """Golden files of a class that computes what another does, so that they are the other's but for names."""

    name: str
    model_type: str
    like: str
    begin: tuple[str, str]  # how some tensors' names begin in the other's file, and in this one


class Addition(NamedTuple):
    """One of a kind: by file what is inserted, each text before a place that the file has once, or all of a file that is new;
    and the part of the suite that covers it: files of tests, what their names have, how many there are at least.
    """

    inserted: dict[str, list[tuple[str, str]] | str]
    files: list[str]
    named: str
    least: int
    needs: tuple[str, ...] = ()  # what else of tests/ they read
    golden: tuple["Golden", ...] = ()
    written: tuple[str, ...] = ()  # the tool that writes the rest, and what it writes

    @property
    def touched(self) -> set[str]:
        """The files that the table must name, and no other."""
        golden = {"tests/golden_family/CLASS/"} if self.golden else set()
        return {*self.inserted, *self.written[1:]} | golden


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

STUB = ("tools/make_stub.py", "tinyroberta/family.pyi")

HEAD = Addition(
    {
        "tinyroberta/heads.py": [
            (
                "def spans(",
                '''def tags(ops: Backend, x: Encoded) -> Fields:
    """A score for every tag of every token, (B, S, tags)."""
    return {"logits": x.rows.unpack(ops.linear(x.last, **x.weights["tagger"]))}


''',
            ),
            (
                '    "ForQuestionAnswering": ',
                """    "ForTagging": Head(
        outputs.TokenClassifierOutput,
        tags,
        lambda config: dense("tagger", config.num_labels or 0, config.hidden_size),
        loss=losses.token_classification,
    ),
""",
            ),
        ],
        "tinyroberta/models.py": [
            (
                "class RobertaPreLayerNormForQuestionAnswering(",
                '''class RobertaPreLayerNormForTagging(RobertaPreLayerNormPreTrainedModel):
    """An encoder with tags for every token."""

    head = HEADS["ForTagging"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **options: Unpack[Options],
    ) -> TokenClassifierOutput:  # fmt: skip
        """ids (B, S) -> logits (B, S, tags), loss with labels."""
        given = Given(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self._answer(given, options, labels)


''',
            ),
            ("        RobertaPreLayerNormForQuestionAnswering,\n", "        RobertaPreLayerNormForTagging,\n"),
        ],
        "tinyroberta/weights/names.py": [(', "qa_outputs")', ', "tagger"')],
    },
    ["test_family.py"],
    "stub or seven or (Tagging and (saving or (equals and not numba)))",
    12,
    golden=tuple(
        Golden(named(kind, "ForTagging"), kind, named(kind, "ForTokenClassification"), ("classifier.", "tagger."))
        for kind in FAMILIES
        if kind != OWN
    ),
    written=STUB,
)

FAMILY = Addition(
    {
        "tinyroberta/weights/names.py": [('    "camembert": Family', '    "newberta": Family("NewBERTa", "new."),\n')],
        "tinyroberta/config.py": [
            (
                "CONFIGS: dict",
                '''@dataclass(frozen=True)
class NewBERTaConfig(RobertaPreLayerNormConfig):
    """What a NewBERTa model is."""

    model_type: str = "newberta"


''',
            ),
            (", XLMRobertaXLConfig)\n}", ", NewBERTaConfig"),
        ],
        "tinyroberta/__init__.py": [
            (", RobertaPreLayerNormConfig,", ", NewBERTaConfig"),
            ('    "RobertaConfig",', '    "NewBERTaConfig",\n'),
        ],
        "tinyroberta/tasks/special_tokens.py": [('    "camembert": ', '    "newberta": "RobertaTokenizer",\n')],
    },
    ["test_family.py"],
    "stub or seven or public or tokenizer or (NewBERTa and (saving or (equals and not numba)))",
    25,
    golden=tuple(Golden(f"NewBERTa{head}", "newberta", named("roberta", head), ("roberta.", "new.")) for head in HEADS),
    written=STUB,
)

DEVIATION = Addition(
    {
        "tinyroberta/numerics/deviations.py": [
            ('    yield Deviation("unk in place', '    yield Deviation("hidden_act is relu", fields(hidden_act="relu"))\n')
        ],
        "tests/torch_roberta.py": [("    raise KeyError(", '    if name == "relu":\n        return torch.relu(x)\n')],
        "tests/numerics_cases.py": [
            ("    # pairs,", '    "relu": Case({"act": "relu"}, ("hidden_act is relu",), (f"{LAYER}intermediate",)),\n')
        ],
    },
    ["test_explain.py"],
    "every_row or relu",  # the latter where torch is
    1,
    ("golden_numerics", "numerics_cases.py", "torch_roberta.py"),
)

ADDITIONS = {
    "a head": HEAD,
    "an activation": ACTIVATION,
    "a weight format": FORMAT,
    "a precision level": LEVEL,
    "a deviation": DEVIATION,
    "a family": FAMILY,
}


def test_every_addition_of_the_table_is_tried() -> None:
    told = {what: {file.replace("FORMAT", "npz") for file in files} for what, files in table().items()}
    assert told == {what: addition.touched for what, addition in ADDITIONS.items()}


@pytest.mark.parametrize("what", ADDITIONS)
def test_what_the_table_names_is_enough(what: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    addition = ADDITIONS[what]
    copy(addition, tmp_path)
    for file, texts in addition.inserted.items():
        insert(tmp_path / file, texts)
    for entry in addition.golden:
        write_golden(tmp_path / "tests" / "golden_family", entry)
    if addition.written:
        (tmp_path / "tools").mkdir()
        run(tmp_path, str(shutil.copy(ROOT / addition.written[0], tmp_path / "tools")))
    printed = run(tmp_path, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", addition.named, *addition.files)
    passed = re.search(r"(\d+) passed", printed)
    assert passed
    assert int(passed[1]) >= addition.least, printed


def copy(addition: Addition, to: Path) -> None:
    """The package and the tests that an addition needs, in another place."""
    shutil.copytree(ROOT / "tinyroberta", to / "tinyroberta", ignore=shutil.ignore_patterns("__pycache__", "demo", "libraries"))
    (to / "tests").mkdir()
    for name in {"models_for_tests.py", "tasks_for_tests.py", *addition.files, *addition.needs}:
        if (held := ROOT / "tests" / name).is_dir():
            (to / "tests" / name).symlink_to(held)
        elif held.is_file():  # and not what the addition brings
            shutil.copy(held, to / "tests")
    if addition.golden:
        shutil.copytree(ROOT / "tests" / "golden_family", to / "tests" / "golden_family")
    shutil.copy(ROOT / "pyproject.toml", to)


def insert(path: Path, texts: list[tuple[str, str]] | str) -> None:
    """Write a new file, or texts into one that there is."""
    if isinstance(texts, str):
        assert not path.exists()
        path.write_text(texts, encoding="utf-8")
        return
    for place, text in texts:
        content = path.read_text(encoding="utf-8")
        assert content.count(place) == 1, (path, place)
        path.write_text(content.replace(place, text + place), encoding="utf-8")


def write_golden(folder: Path, golden: Golden) -> None:
    """The other class's files under this one's names."""
    shutil.copytree(folder / golden.like, folder / golden.name)
    config = json.loads((folder / golden.like / "config.json").read_text())
    config |= {"architectures": [golden.name], "model_type": golden.model_type}
    (folder / golden.name / "config.json").write_text(json.dumps(config))
    theirs, ours = golden.begin
    tensors = safetensors.numpy.load_file(folder / golden.like / "model.safetensors")
    tensors = {ours + name.removeprefix(theirs) if name.startswith(theirs) else name: x for name, x in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / golden.name / "model.safetensors", {"format": "pt"})


def run(where: Path, *command: str) -> str:
    """What Python prints in a copy."""
    given = {"PYTHONPATH": str(where), "NUMBA_CACHE_DIR": str(where / "kernels"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=where / "tests", env=os.environ | given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

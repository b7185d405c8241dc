"""backends/numba/compiled.py: what is kept, where, and that a process that finds it compiles nothing and imports no Numba."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tinyroberta
from tinyroberta import Error
from tinyroberta.backends import load_backend

pytest.importorskip("numba")
from tinyroberta.backends.numba import compiled, paths, shipped

if shipped.library() is not None:
    pytest.skip("a library of kernels came with the package (test_shipped.py): nothing is compiled", allow_module_level=True)

PACKAGE = Path(tinyroberta.__file__).parent
EMBED = """
import numpy as np, tinyroberta
from tinyroberta.backends import load_backend
ops = load_backend("cpu")
x = np.eye(3, dtype=np.float32)
print(ops.embed(np.arange(3), None, np.zeros(3, int), x, x, x[:1]).sum())
"""
EVERYTHING = """
import sys, numpy as np, tinyroberta, tinyroberta.cli
from tinyroberta.backends import PRECISIONS
from tinyroberta.backends.numba import paths
cls = tinyroberta.RobertaPreLayerNormForCausalLM
for path in paths.PATHS:
    if paths.reason_against(path) is None:
        __import__("os").environ["TINYROBERTA_CPU"] = path
        for precision in PRECISIONS:
            for act in ("gelu", "mish"):
                config = tinyroberta.RobertaPreLayerNormConfig(vocab_size=40, hidden_size=48, num_hidden_layers=1, hidden_act=act,
                    num_attention_heads=3, intermediate_size=64, max_position_embeddings=40, is_decoder=True)
                model = cls(config, backend="cpu", matmul_precision=precision)
                model(np.arange(3, 30)[None], output_attentions=True)
                model.generate(np.arange(3, 9)[None], max_new_tokens=2)
assert tinyroberta.cli.main(["fill-mask", "--json", "--backend", "cpu", "A <mask>."]) == 0
assert "numba" not in sys.modules
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own; a variable given as "" is not set."""
    variables = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    variables = {name: value for name, value in variables.items() if value}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=variables)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package where nothing is kept beside it: what would be the folder is a file, which not even root writes into."""
    shutil.copytree(PACKAGE, tmp_path / "site" / "tinyroberta", ignore=shutil.ignore_patterns("__pycache__", "demo", "libraries"))
    (tmp_path / "site" / "tinyroberta" / "backends" / "numba" / "__pycache__").touch()
    return tmp_path / "site"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_after_warmup_nothing_is_compiled(tmp_path: Path) -> None:
    done = run("import sys, tinyroberta.cli; sys.exit(tinyroberta.cli.main(['warmup']))", NUMBA_CACHE_DIR=str(tmp_path))
    kernels = [kernel for kernel in compiled.Kernel.every if kernel.missing() is None]
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(kernels) == len(files(tmp_path))
    assert f"compiling 1 of {len(kernels)}: " in done.stderr
    done = run(EVERYTHING, NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(files(tmp_path)) == len(kernels)
    done = run("import sys, tinyroberta.cli; sys.exit(tinyroberta.cli.main(['warmup']))", NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"nothing to compile: all {len(kernels)} kernels for this CPU are kept already\n"


def test_a_first_run_says_so_and_a_second_is_silent(tmp_path: Path) -> None:
    first, second = (run(EMBED, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr.startswith("tinyroberta: compiling up to ")
    assert first.stderr.count("\n") == 1
    assert (second.returncode, second.stderr, second.stdout) == (0, "", first.stdout)
    quiet = "import logging; logging.getLogger('tinyroberta').setLevel('ERROR')"
    shutil.rmtree(tmp_path)
    assert run(quiet + EMBED, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_where_the_package_cannot_be_written_the_user_s_cache_is(copied: Path, tmp_path: Path) -> None:
    given = {"PYTHONPATH": str(copied), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": ""}
    assert "compiling" in run(EMBED, **given).stderr
    assert len(files(tmp_path / "cache" / "tinyroberta")) == 2
    assert run(EMBED, **given).stderr == ""


def test_where_nothing_can_be_written_each_run_compiles(copied: Path) -> None:
    given = {"PYTHONPATH": str(copied), "XDG_CACHE_HOME": os.devnull, "HOME": os.devnull, "NUMBA_CACHE_DIR": ""}
    for _ in range(2):
        done = run(EMBED, **given)
        assert done.returncode == 0, done.stderr
        assert "compiling" in done.stderr
        assert done.stderr.count("cannot be kept") == 1
    done = run("import tinyroberta.cli; tinyroberta.cli.main(['warmup'])", **given)
    assert "cannot be kept" in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
    assert done.stderr.count("cannot be kept") == 1


def test_what_is_kept_beside_the_package_is_read_where_nothing_can_be_written(copied: Path, tmp_path: Path) -> None:
    """As in an image whose builder was another user."""
    assert run(EMBED, PYTHONPATH=str(copied), NUMBA_CACHE_DIR=str(tmp_path)).returncode == 0
    cache = copied / "tinyroberta" / "backends" / "numba" / "__pycache__"
    cache.unlink()
    shutil.move(tmp_path / "tinyroberta", cache)
    done = run(EMBED, PYTHONPATH=str(copied), XDG_CACHE_HOME=os.devnull, HOME="", NUMBA_CACHE_DIR="")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_file_is_compiled_anew(tmp_path: Path) -> None:
    before = run(EMBED, NUMBA_CACHE_DIR=str(tmp_path)).stdout
    for path in (tmp_path / "tinyroberta").iterdir():
        path.write_bytes(path.read_bytes()[: 10 if "embed" in path.name else -10])
    done = run(EMBED, NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, before)
    assert "compiling" in done.stderr
    assert run(EMBED, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


COUNTED = """
import sys
from tinyroberta.backends.numba import compiled
compile = compiled._compile
def counted(kernel):
    print("made", kernel.name, file=sys.stderr, flush=True)
    return compile(kernel)
compiled._compile = counted
"""


@pytest.mark.skipif(os.name == "nt", reason="there each process compiles for itself")
def test_first_runs_at_the_same_time(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-P", "-c", EMBED], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    command[-1] = COUNTED + EMBED
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    said, told = zip(*(done.communicate(timeout=300) for done in runs), strict=True)
    assert [done.returncode for done in runs] == [0] * 3
    assert len(set(said)) == 1
    compiled_here = [line for text in told for line in text.splitlines() if line.startswith(b"made ")]
    assert sorted(compiled_here) == sorted(set(compiled_here))  # each kernel by one process
    assert len(compiled_here) == len(files(tmp_path))
    assert all(name.endswith(".o") for name in files(tmp_path))
    assert run(EMBED, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_another_source_has_another_name(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied / "tinyroberta" / "backends" / "numba"
    monkeypatch.setattr(shipped, "__file__", str(folder / "shipped.py"))
    shipped.sources.cache_clear()
    try:
        before = shipped.sources()
        shipped.sources.cache_clear()
        source = folder / "machine" / "lanes.py"  # in a folder of this one's
        source.write_text(source.read_text() + "\n")
        assert shipped.sources() != before
    finally:
        shipped.sources.cache_clear()


def test_code_that_needs_numba_s_runtime_is_loaded_after_numba(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from tinyroberta.backends.numba import compiled, paths
def keeps_an_array(address, n, _):
    x = np.arange(n)
    y = carray(words(address), n)
    for i in range(n):
        y[i] = x[n - 1 - i]
from numba import carray
import tinyroberta.backends.numba.machine.memory
compiled.keep_promises()
from tinyroberta.backends.numba.machine.memory import words
kernel = compiled.Kernel(keeps_an_array)
y = np.zeros(5, np.int64)
kernel(y.ctypes.data, 5, 0)
assert y.tolist() == [4, 3, 2, 1, 0]
"""
    for _ in range(2):
        done = run(code, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
    (path,) = (path for path in tmp_path.rglob("*.o") if "keeps_an_array" in path.name)
    assert path.read_bytes()[32] == 1


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_who_holds_the_lock_for_ever_is_not_waited_for(tmp_path: Path) -> None:
    """As a process that was stopped does; a process that waits says so."""
    import fcntl

    (tmp_path / "tinyroberta").mkdir()
    handle = os.open(tmp_path / "tinyroberta", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        patience = "from tinyroberta.backends.numba import compiled; compiled.PATIENCE = 1.5\n"
        done = run(patience + EMBED, NUMBA_CACHE_DIR=str(tmp_path))
    finally:
        os.close(handle)
    assert done.returncode == 0, done.stderr
    assert "waiting for them" in done.stderr
    assert len(files(tmp_path)) == 2


def test_a_bar_while_kernels_are_compiled(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    assert "kernels" in run(EMBED, NUMBA_CACHE_DIR=str(tmp_path), FORCE_COLOR="1", COLUMNS="100").stderr.partition("ahead")[2]
    assert run(EMBED, NUMBA_CACHE_DIR=str(tmp_path), FORCE_COLOR="1").stderr == ""


BROKEN = "raise ImportError('Numba needs NumPy 2.4 or less')"
DEFAULT = "import tinyroberta.backends as b; print(b.load_backend().__name__); b.load_backend('numba')"


def test_numba_is_the_default_where_it_works(tmp_path: Path) -> None:
    assert load_backend() is load_backend("cpu") is load_backend("numba")  # its name before machine code came with the package
    done = run("import sys; sys.modules['numba'] = None; " + DEFAULT)
    assert done.stdout == "tinyroberta.backends.numpy\n"
    assert "pip install 'tinyroberta[cpu]'" in done.stderr
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(BROKEN)
    (tmp_path / "numba" / "_version.py").write_text("")
    given = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = run(DEFAULT, **given)
    assert done.stdout == "tinyroberta.backends.numpy\n"
    assert "Numba needs NumPy 2.4 or less" in done.stderr


def test_what_numba_cannot_run_is_numpy_s_by_default() -> None:
    import numpy as np

    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = tinyroberta.RobertaPreLayerNormConfig(vocab_size=20, **sizes, max_position_embeddings=20)
    called = tinyroberta.RobertaPreLayerNormConfig(vocab_size=20, **sizes, max_position_embeddings=20, hidden_act=np.tanh)
    model = tinyroberta.RobertaPreLayerNormModel
    assert model(config).backend == "cpu"
    assert model(config, dtype="float64").backend == "numpy"
    assert model(called).backend == "numpy"
    assert model(called)(np.array([[5]])).last_hidden_state.dtype == np.float32
    with pytest.raises(Error, match="float64"):
        model(config, backend="cpu", dtype="float64")


def test_a_bar_only_on_a_terminal_and_only_for_what_takes_long() -> None:
    pty = pytest.importorskip("pty")
    code = """
import sys, time
if {bare}: sys.modules["rich"] = None
from tinyroberta.progress import progress
with progress(10, "packing weights", after={after}) as told:
    for _ in range(10):
        told(1)
        time.sleep(0.02)
"""
    for bare in (True, False):
        for after, shown in ((0.05, True), (9.0, False)):
            leader, follower = pty.openpty()
            command = [sys.executable, "-P", "-c", code.format(bare=bare, after=after)]
            environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "TERM": "xterm"}
            with subprocess.Popen(command, stderr=follower, env=environment) as process:
                os.close(follower)
                seen = b""
                try:
                    while piece := os.read(leader, 1000):
                        seen += piece
                except OSError:  # the other end is closed
                    pass
            os.close(leader)
            assert process.returncode == 0
            assert (b"packing weights" in seen) == shown
            if not shown:
                assert seen == b""
        assert run(code.format(bare=bare, after=0)).stderr == ""


PEAK = """
import sys, numpy as np, tinyroberta
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
import tinyroberta.backends.numba
before = peak()
model = tinyroberta.load(sys.argv[1], backend="cpu")
model(np.arange(3, 19)[None])
print(peak() - before, sum(x.nbytes for name, x in model.tensors.items() if "word_embeddings" not in name))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("path", paths.PATHS)
def test_peak_memory_is_little_more_than_the_weights_as_held(tmp_path: Path, path: str) -> None:
    """Float32 on disk and in panels (bytes as held: 3 of 4 on tiles); the file's pages are let go, word embeddings stay there."""
    if paths.reason_against(path) is not None:
        pytest.skip("this machine cannot")
    sizes: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 5, "num_attention_heads": 12, "intermediate_size": 3072}
    config = tinyroberta.RobertaPreLayerNormConfig(vocab_size=20_000, **sizes, max_position_embeddings=40)
    tinyroberta.RobertaPreLayerNormModel(config, backend="numpy").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-P", "-c", PEAK, str(tmp_path / "model")]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "TINYROBERTA_CPU": path}
    for _ in range(2):  # the first may compile
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    peak, stored = map(int, done.stdout.split())
    assert peak <= 1.3 * stored * (0.75 if path == "amx" else 1)

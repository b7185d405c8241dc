"""backends/numba/shipped.py: the machine code that came with the package, which library runs, and that no other file ever does.

All but the comparison with Numba's own code runs without Numba. tools/build_libraries.py puts libraries into a checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tinyroberta.backends.numba")
import tinyroberta
import tinyroberta.cli
from tinyroberta.backends.numba import compiled, shipped

if shipped.library() is None:
    pytest.skip(f"{shipped.reason_against()}", allow_module_level=True)

PACKAGE, TESTS = Path(tinyroberta.__file__).parent, Path(__file__).parent
HAS = shipped.features(shipped._opened(shipped.IDENTIFY, json.loads((shipped.FOLDER / "manifest.json").read_text())))
RUNNABLE = [name for name, target in shipped.TARGETS.items() if HAS.issuperset(target.features)]
NO_NUMBA = "import sys\nfor name in ('numba', 'llvmlite'): sys.modules[name] = None\n"
RUN = """
import hashlib, numpy as np, tinyroberta
from tinyroberta.backends.numba import shipped
library = shipped.library()
config = tinyroberta.RobertaPreLayerNormConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=96, max_position_embeddings=60)
ids = np.arange(3, 43)[None]
def bits(**running):
    model = tinyroberta.RobertaPreLayerNormModel(config, **running)
    return hashlib.sha256(model(ids).last_hidden_state.tobytes()).hexdigest()[:16]
"""


def variables(name: str) -> dict[str, str]:
    """What makes a process take one library, and Numba compile for the same CPUs."""
    target = shipped.TARGETS[name]
    return {"NUMBA_CPU_NAME": target.cpu, "NUMBA_CPU_FEATURES": ",".join(f"+{x}" for x in ("sse2", *target.features))}


def run(code: str, package: Path = PACKAGE, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that has no Numba; a variable given as "" is not set."""
    held = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    held = {name: value for name, value in held.items() if value}
    command = [sys.executable, "-P", "-c", NO_NUMBA + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=held)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, with its libraries."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "site" / "tinyroberta", ignore=shutil.ignore_patterns("__pycache__", "demo")))


def test_the_cpu_is_what_the_system_says_it_is() -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*: (.*)$", cpuinfo, re.M)[1].split())  # type: ignore[index]
    names = {
        "sse3": "pni",
        "lzcnt": "abm",
        "bmi": "bmi1",
        "sahf": "lahf_lm",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
    }
    if "NUMBA_CPU_FEATURES" not in os.environ:
        assert {name for name in shipped._BITS if re.sub("[.-]", "_", names.get(name, name)) in flags} == HAS
    assert all(set(target.features) <= set(shipped._BITS) for target in shipped.TARGETS.values())


def test_the_best_library_runs_and_info_says_which_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    library = shipped.library()
    assert library is not None
    assert library.name == RUNNABLE[-1]
    assert tinyroberta.cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"machine code: the library {RUNNABLE[-1]} of avx2, avx512, vnni, bf16, amx that came with this package" in said
    for better in list(shipped.TARGETS)[len(RUNNABLE) :]:
        assert f"not {better}: the CPU has no " in said
    assert tinyroberta.cli.main(["warmup"]) == 0
    assert capsys.readouterr().err.endswith(f"came with the package, in its library {RUNNABLE[-1]}\n")


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_library_has_the_same_reproducible_bits_on_every_path(name: str) -> None:
    code = """
from tinyroberta.backends.numba import paths
import os
print(library.name)
print(bits(backend="numpy", reproducible=True))
for path in paths.PATHS:
    if paths.reason_against(path) is None:
        os.environ["TINYROBERTA_CPU"] = path
        print(bits(backend="cpu", reproducible=True))
        bits(backend="cpu", matmul_precision="medium")
"""
    done = run(RUN + code, **variables(name))
    assert (done.returncode, done.stderr) == (0, "")
    said, *found = done.stdout.split()
    assert said == name
    assert len(found) >= 3
    assert len(set(found)) == 1


def test_a_cpu_that_no_library_is_for_needs_numba() -> None:
    done = run(
        "import tinyroberta; tinyroberta.backends.load_backend('cpu')", NUMBA_CPU_NAME="nehalem", NUMBA_CPU_FEATURES="+sse4.2"
    )
    assert "are for CPUs with AVX2, and this one has no avx, avx2, bmi" in done.stderr
    assert "pip install 'tinyroberta[cpu]'" in done.stderr


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def of(folder: Path, name: str = RUNNABLE[-1]) -> Path:
    return folder / "backends" / "numba" / "libraries" / shipped.file_name(name)


def manifest(folder: Path, text: str) -> None:
    (of(folder).parent / "manifest.json").write_text(text)


WRONG = {
    "a bit": (lambda folder: damage(of(folder)), "damaged, or another file"),
    "the end": (lambda folder: of(folder).write_bytes(of(folder).read_bytes()[:-1]), "damaged, or another file"),
    "foreign": (lambda folder: shutil.copy(of(folder, "cpuid"), of(folder)), "damaged, or another file"),
    "missing": (lambda folder: of(folder).unlink(), "cannot be loaded"),
    "cpuid": (lambda folder: damage(of(folder, "cpuid")), "damaged, or another file"),
    "manifest": (lambda folder: manifest(folder, '{"sources": '), "made from other sources"),
    "no manifest at all": (lambda folder: manifest(folder, "[]"), "made from other sources"),
    "newer sources": (lambda folder: append(folder / "backends" / "bitwise.py"), "made from other sources"),
}
ALONE = """
import tinyroberta.backends as backends
print(backends.load_backend().__name__)
print([line for line in open("/proc/self/maps") if "tinyroberta-" in line and "tinyroberta-cpuid" not in line])
backends.load_backend("cpu")
"""


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_damaged_or_foreign_or_stale_is_refused_and_never_loaded(wrong: str, copied: Path) -> None:
    done = run(ALONE, copied)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "tinyroberta.backends.numba"
    assert done.stdout.splitlines()[1] != "[]"
    change, said = WRONG[wrong]
    change(copied)
    done = run(ALONE, copied)
    assert done.stdout == "tinyroberta.backends.numpy\n[]\n"
    warning, *_, error = done.stderr.splitlines()
    assert warning.startswith("tinyroberta: the compiled kernels in ")
    assert said in warning
    assert warning.endswith("; install tinyroberta anew")
    assert error.startswith("tinyroberta.errors.Error: backend 'cpu' needs Numba here: pip install 'tinyroberta[cpu]' (")
    assert said in error


def test_numba_runs_in_place_of_a_damaged_library(copied: Path, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    code = "print(bits(backend='cpu'), bits(backend='cpu', reproducible=True), library is None)"
    came = run(RUN + code, copied)
    damage(of(copied))
    command = [sys.executable, "-P", "-c", RUN + code]
    held = os.environ | {"PYTHONPATH": str(copied.parent), "NUMBA_CACHE_DIR": str(tmp_path)}
    made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=held)
    assert "damaged, or another file" in made.stderr
    assert made.stdout.split() == [*came.stdout.split()[:2], "True"]


NOTHING = """
from tinyroberta.backends.numba import compiled
def fail(*given): raise AssertionError("compiled, or kept")
compiled._compile = compiled._keep = compiled._kept = fail
for precision in ("highest", "high", "medium"):
    bits(backend="cpu", matmul_precision=precision)
bits(backend="cpu", reproducible=True)
assert all(kernel.kept for kernel in compiled.Kernel.every if kernel.missing() is None)
assert not {"numba", "llvmlite"} & {name for name, module in sys.modules.items() if module is not None}
"""


def test_nothing_is_compiled_and_nothing_written(copied: Path, tmp_path: Path) -> None:
    def files() -> list[tuple[str, float]]:
        return sorted((str(path), path.stat().st_mtime) for path in tmp_path.rglob("*"))

    before = files()
    done = run(RUN + NOTHING, copied, HOME=str(tmp_path), XDG_CACHE_HOME="", NUMBA_CACHE_DIR="")
    assert (done.returncode, done.stderr) == (0, "")
    assert files() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_another_user_without_a_home_who_can_write_nothing() -> None:
    """As in an image that root made, on a file system that is read only; this user cannot even look into root's folders."""
    become = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    # what may lie where only root reads
    imported = "import ctypes, hashlib, importlib.util, json, logging, platform, numpy.random, ml_dtypes, tinyroberta.models\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(shutil.copytree(PACKAGE, Path(folder) / "tinyroberta", ignore=shutil.ignore_patterns("__pycache__", "demo")))
        done = run(imported + become + RUN + NOTHING, copy, HOME="", XDG_CACHE_HOME="", NUMBA_CACHE_DIR="")
    assert (done.returncode, done.stderr) == (0, "")


PROCESSES = """
import multiprocessing, sys, threading
for name in ("numba", "llvmlite"): sys.modules[name] = None
{run}
def told(queue): queue.put(bits(backend="cpu"))
if __name__ == "__main__":
    expected = bits(backend="cpu")
    for way in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        children = [context.Process(target=told, args=(queue,)) for _ in range(2)]
        for child in children: child.start()
        assert [queue.get(timeout=120) for _ in children] == [expected] * 2, way
        for child in children: child.join()
    found = []
    threads = [threading.Thread(target=lambda: found.append(bits(backend="cpu"))) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert found == [expected] * 8
"""


def test_forked_and_spawned_children_and_threads(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(PROCESSES.format(run=RUN))
    held = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "run.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=held)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_the_libraries_ask_little_of_the_system() -> None:
    paths = sorted(shipped.FOLDER.glob("*.so"))
    assert [path.name for path in paths] == sorted(map(shipped.file_name, [shipped.IDENTIFY, *shipped.TARGETS]))
    assert sum(path.stat().st_size for path in paths) < 2e6
    for path in paths:
        said = subprocess.run(
            ["readelf", "-W", "-d", "-l", "-V", "-S", str(path)], capture_output=True, text=True, check=True
        ).stdout
        assert "TEXTREL" not in said
        assert " RWE " not in said
        assert ".symtab" not in said  # stripped
        assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", said)) <= {"libc.so.6", "libm.so.6"}
        assert all(tuple(map(int, found.split("."))) <= (2, 17) for found in re.findall(r"GLIBC_([\d.]+)", said))


def test_a_library_has_every_kernel_that_its_cpus_run() -> None:
    kernels = [kernel for kernel in compiled.Kernel.every if kernel.function.__module__.startswith("tinyroberta.")]
    assert len(kernels) > 20
    names = {kernel.name: shipped.symbol(kernel.function) for kernel in kernels}
    assert len(set(names.values())) == len(kernels)
    for target in shipped.TARGETS:
        content = (shipped.FOLDER / shipped.file_name(target)).read_bytes()
        left = {name for name, symbol in names.items() if str(symbol).encode() + b"\0" not in content}
        tiles, dots = {name for name in names if "tiles" in name}, {"digit_dots"}
        bf16 = {"bf16_dots", "bf16_attention_by_dots"}
        expected = {"amx": set(), "bf16": tiles, "vnni": tiles | bf16}.get(target, tiles | bf16 | dots)
        assert left == expected, target


def told_twice(environment: dict[str, str]) -> dict[str, str]:
    """What compiled_twice says of every kernel in an environment; of no kernel where it failed, but why."""
    held = os.environ | environment | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-P", "-m", "compiled_twice"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=held)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines()) if done.returncode == 0 else {"failed": done.stderr}


@pytest.fixture(scope="module")
def comparisons() -> Iterator[dict[str, Future[dict[str, str]]]]:
    """Of every library that runs here, and of the best one with what Numba makes for this very CPU: as many at a time as CPUs."""
    pytest.importorskip("numba")
    from amx_on_cpu import emulator

    environments = {name: variables(name) for name in RUNNABLE} | {"this CPU": {}}
    if emulator.reason_against() is None:
        environments["emulated"] = emulator.environment()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(told_twice, environment) for name, environment in environments.items()}


@pytest.mark.parametrize("where", [*RUNNABLE, "this CPU", "emulated"])
def test_every_kernel_has_the_bits_of_numbas_own_code(where: str, comparisons: dict[str, Future[dict[str, str]]]) -> None:
    if where not in comparisons:
        pytest.skip("AMX is here, or cannot be emulated")
    found = comparisons[where].result()
    assert set(found.values()) == {"same"}, found
    assert len(found) >= (20 if where in ("amx", "emulated") else 13)

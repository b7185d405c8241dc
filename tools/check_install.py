"""Hold an installation to its promises: size beyond NumPy's own, time to import, time until the command line works.

    python tools/check_install.py           # in an environment with the core install alone, outside the checkout
    python tools/check_install.py --kernels # the same of a wheel that has compiled kernels: they run, without Numba
    python tools/check_install.py --text    # with the text extra: the command line's start

Times are by the clock, the least of many runs in turn with their baseline, since other work on the machine only ever adds.
"""

import argparse
import importlib.metadata
import importlib.util
import subprocess
import sys
import time

MOST_MEGABYTES, MOST_IMPORT_SECONDS, MOST_START_SECONDS = 25, 0.15, 1 / 3  # the embedded models are 17 MB of it
RUNS = 20


def megabytes(distribution: str) -> float:
    files = importlib.metadata.files(distribution) or []
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file()) / 1e6  # type: ignore[attr-defined]


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def hold(name: str, value: float, most: float, unit: str) -> bool:
    print(f"{name}: {value:.3f} {unit} (at most {most:.3f})")
    return value <= most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--text", action="store_true")
    given = parser.parse_args()
    if given.text:
        start = min(seconds("-m", "tinyroberta", "fill-mask", "--help") for _ in range(RUNS))
        loaded = "import tokenizers, rich.table, tinyroberta.cli, tinyroberta.tasks.fill_mask"
        imported = min(seconds("-c", loaded) for _ in range(RUNS))
        return 0 if hold("command line, all it imports", max(start, imported), MOST_START_SECONDS, "s") else 1
    if given.kernels:
        from tinyroberta.backends.numba import shipped  # raises where there are none and no Numba

        print(*shipped.describe(), sep="\n")
        if shipped.library() is None or importlib.util.find_spec("numba") is not None:
            return 1
    size = sum(megabytes(name) for name in ("tinyroberta", "safetensors", "ml_dtypes"))
    pairs = [(seconds("-c", "import numpy"), seconds("-c", "import tinyroberta")) for _ in range(RUNS)]
    more = min(ours for _, ours in pairs) - min(numpy for numpy, _ in pairs)
    small = hold("core install beyond NumPy", size, MOST_MEGABYTES, "MB")
    return 0 if hold("import beyond NumPy", more, MOST_IMPORT_SECONDS, "s") and small else 1


if __name__ == "__main__":
    sys.exit(main())

"""What Ray Data adds on one node: texts a second of bulk.embed beside Embedder.encode alone, in the same run.

    python -m benchmarks.bulk [--texts 4000] [--seconds 60] [--threads 2] [--exports FOLDER] [--save]

Model and sentences are benchmarks.embed's: RoBERTa base with drawn weights. Vectors are checked first, to the bit. Rounds are
interleaved in a drawn order; a round of bulk.embed starts an actor, which opens the model, and so does a job: "ray" counts that,
"ray, less start" is less the seconds that a job of one text takes. A ratio is the median over rounds of run / encode.
The last lines are arithmetic: hours of this machine and bytes of Parquet for a billion such texts.
"""

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tinyroberta
from tinyroberta import bulk

from .cpu import add_options, exports, machine, median_ratio, quiet, save
from .embed import sentences, write_folder

BILLION = 10**9


@contextmanager
def local_ray(cpus: int) -> Iterator[Any]:
    """Ray on loopback alone, without its page and its statistics; what it writes goes with it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN_PATH": str(token)}
        import ray.data

        root = str(Path(tinyroberta.__file__).parents[1])
        ray.init(
            num_cpus=cpus + 1, num_gpus=0, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
            object_store_memory=2**28, _temp_dir=folder, runtime_env={"env_vars": {"PYTHONPATH": root}},
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield ray
        finally:
            ray.shutdown()


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What Ray Data adds to Embedder.encode on one node.")
    parser.add_argument("--texts", type=int, default=4000)
    add_options(parser, 60)
    chosen = parser.parse_args(given)
    about = machine()
    threads = chosen.threads or about["cpus"]
    texts = sentences(chosen.texts)
    with local_ray(threads) as ray, exports(chosen.exports, "embed") as folder:
        about["versions"]["ray"] = ray.__version__
        print(f"{about['cpu']}, {threads} threads; {len(texts)} sentences", flush=True)
        write_folder(folder)
        model = folder / "model"
        embedder = tinyroberta.Embedder.from_pretrained(model, threads=threads)

        def by_ray(given: list[str]) -> np.ndarray[Any, Any]:
            table = [{"n": n, "text": text} for n, text in enumerate(given)]
            dataset = ray.data.from_items(table, override_num_blocks=min(len(table), 8))
            made = bulk.embed(dataset, model=model, concurrency=1, num_cpus=1, threads=threads)
            rows = sorted(made.iter_rows(), key=lambda row: row["n"])
            return np.stack([row["embedding"] for row in rows])

        runs = {
            "encode": lambda: embedder.encode(texts, progress=False),
            "ray": lambda: by_ray(texts),
            "ray, start": lambda: by_ray(texts[:1]),
        }
        if not np.array_equal(runs["ray"](), runs["encode"]()):
            raise SystemExit("the vectors of bulk.embed are not those of Embedder.encode: nothing was timed")
        times: dict[str, list[float]] = {name: [] for name in runs}
        random = np.random.default_rng(0)
        end = time.perf_counter() + chosen.seconds
        while time.perf_counter() < end or len(times["encode"]) < 3:
            for name in random.permutation(list(runs)):
                start = time.perf_counter()
                runs[name]()
                times[name].append(time.perf_counter() - start)
                quiet()
        times["ray, less start"] = [a - b for a, b in zip(times["ray"], times.pop("ray, start"), strict=True)]
    rows = {}
    for name, each in times.items():
        speed = len(texts) / float(np.median(each))
        row = {"texts_per_second": speed, "ratio": median_ratio(times, name, "encode"), "rounds": len(each)}
        rows[name] = row | {"hours_for_a_billion": BILLION / speed / 3600}
        print(f"  {name:16} {speed:8.1f} texts/s  x {row['ratio']:.3f}  {BILLION / speed / 3600:,.0f} hours", flush=True)
    for bits in (32, 16):
        print(f"  a billion vectors of {embedder.dimension} float{bits}: {BILLION * embedder.dimension * bits / 8e12:.2f} TB")
    if chosen.save:
        save(about | {"threads": threads, "texts": len(texts), "stacks": rows}, "bulk")


if __name__ == "__main__":
    main()

"""Vectors of tables: the bits of one process alone, however rows are cut, spread and lost on the way."""

import contextlib
import importlib
import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyroberta
from tinyroberta import Error
from tinyroberta.demo import FOLDER

pytest.importorskip("tokenizers")
arrow = pytest.importorskip("pyarrow")
psutil = pytest.importorskip("psutil")
from pyarrow import parquet  # noqa: E402

from tinyroberta import bulk  # noqa: E402
from tinyroberta.bulk import cluster, files, tables  # noqa: E402

ROOT = Path(tinyroberta.__file__).parents[1]
WORDS = ["the", "sea", "was", "calm", "and", "she", "opened", "a", "door", "to", "see", "who", "had", "come", "home", "in"]


def texts_of(count: int) -> list[str]:
    draw = random.Random(0)
    return [f"{n} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for n in range(count)]


def vectors_of(column: Any) -> np.ndarray[Any, Any]:
    column = column.combine_chunks() if isinstance(column, arrow.ChunkedArray) else column
    return column.flatten().to_numpy().reshape(len(column), -1)


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tinyroberta.Embedder.from_pretrained()


# Without Ray


@pytest.mark.parametrize("form", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_table_gets_one_column_and_keeps_all_else(form: str, chunks: int, embedder: Any) -> None:
    texts = texts_of(11)
    texts[3] = texts[10] = None
    column = arrow.array(texts, arrow.string())
    column = column.dictionary_encode() if form == "dictionary" else column.cast(getattr(arrow, form)())
    plain = arrow.table({"n": range(11), "text": column, "more": [[n] for n in range(11)]}).replace_schema_metadata({"a": "b"})
    table = arrow.concat_tables(plain.slice(n, -(-11 // chunks)) for n in range(0, 11, -(-11 // chunks)))
    made = bulk.embed_table(table, model=embedder)
    assert made.drop_columns("embedding").equals(table, check_metadata=True)
    assert made.schema.field("embedding").type == arrow.list_(arrow.float32(), embedder.dimension)
    assert [x is None for x in made["embedding"].to_pylist()] == [text is None for text in texts]
    expected = embedder.encode([text for text in texts if text is not None])
    assert np.array_equal(vectors_of(made["embedding"].drop_null()), expected)


@pytest.mark.skipif(int(arrow.__version__.split(".")[0]) < 26, reason="before 26 pyarrow writes no null among lists of one size")
def test_parquet_keeps_lists_of_one_size_and_nulls(tmp_path: Path, embedder: Any) -> None:
    made = bulk.embed_table(arrow.table({"text": ["a", None, "b"]}), model=embedder)
    parquet.write_table(made, tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").equals(made)


@pytest.mark.parametrize("texts", [[], [None, None]])
def test_nothing_to_embed_still_gives_the_column(texts: list[Any], embedder: Any) -> None:
    for kind in (arrow.string(), arrow.null()):
        made = bulk.embed_table(arrow.table({"text": arrow.array(texts, kind)}), model=embedder)
        assert made["embedding"].type == arrow.list_(arrow.float32(), embedder.dimension)
        assert made["embedding"].to_pylist() == texts


def test_keywords_reach_the_model_and_its_encode() -> None:
    table = arrow.table({"text": texts_of(3)})
    how = {"normalize": False, "truncate_dim": 5, "prompt": "a: "}
    made = bulk.embed_table(table, into="v", backend="numpy", matmul_precision="highest", **how)
    expected = tinyroberta.Embedder.from_pretrained(backend="numpy").encode(table["text"].to_pylist(), **how)
    assert np.array_equal(vectors_of(made["v"]), expected)


def test_batches_are_as_spark_takes_them(embedder: Any) -> None:
    """mapInArrow: an iterator of RecordBatches to an iterator of RecordBatches, taken one by one, lists of no fixed size."""
    seen: list[int] = []

    def given() -> Iterator[Any]:
        for n in itertools.count():
            seen.append(n)
            yield arrow.RecordBatch.from_pydict({"text": [f"number {n}", None], "n": [n, n]})

    made = partial(bulk.embed_batches, column="text")(given())
    first = next(made)
    assert isinstance(first, arrow.RecordBatch)
    assert first.schema.field("embedding").type == arrow.list_(arrow.float32())
    assert first.column("embedding").to_pylist() == [embedder.encode("number 0").tolist(), None]
    assert seen == [0]
    assert next(made).column("n").to_pylist() == [1, 1]


def test_a_dask_dataframe_by_three_lines(embedder: Any) -> None:
    pandas = pytest.importorskip("pandas")
    dask = pytest.importorskip("dask.dataframe")
    texts = texts_of(40)
    frame = dask.from_pandas(pandas.DataFrame({"text": texts}), npartitions=4)

    def embed(part: Any) -> Any:
        return bulk.embed_table(arrow.Table.from_pandas(part), "text").to_pandas()

    made = frame.map_partitions(embed, meta={"text": "string", "embedding": object}).compute(scheduler="threads")
    assert list(made["text"]) == texts
    assert np.array_equal(np.stack(made["embedding"]), embedder.encode(texts))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"column": "txt"}, "the table has no column txt: there are text, n"),
        ({"column": "n"}, "the column n of the table is of int64; it must be of strings"),
        ({"into": "n"}, "the table has a column n already"),
        ({"model": "/there/is/none"}, "there is no folder"),
        ({"speed": 3}, "speed"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ({"backend": "abacus"}, "there is no backend"),
        ({"prompt_name": "query"}, "prompt_name is 'query'"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(how: dict[str, Any], told: str) -> None:
    with pytest.raises(Error, match=told):
        bulk.embed_table(arrow.table({"text": ["a"], "n": [1]}), **how)


def test_a_loaded_embedder_takes_no_other_settings(embedder: Any) -> None:
    with pytest.raises(Error, match="backend cannot be given with a model that is loaded"):
        bulk.embed_table(arrow.table({"text": ["a"]}), model=embedder, backend="numpy")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    for call in (lambda: bulk.embed("a.parquet"), lambda: bulk.embed_files("a.parquet", "out")):
        with pytest.raises(Error, match=r"tinyroberta\[ray\]"):
            call()


def test_what_a_vector_depends_on_is_in_the_digest(embedder: Any) -> None:
    same = tinyroberta.Embedder.from_pretrained(backend="numpy")
    assert files._digest(same) == files._digest(embedder)
    bare = tinyroberta.RobertaPreLayerNormModel.from_pretrained(FOLDER)
    digests = []
    for number in (0, 1):
        tensors = {name: x.copy() for name, x in bare.tensors.items()}
        tensors["embeddings.word_embeddings.weight"][5, 5] += number
        model = type(bare)(bare.config, tensors)
        digests.append(files._digest(tinyroberta.Embedder(model, same.tokenizer)))
    assert len({files._digest(same), *digests}) == 3
    other = same.recipe._replace(after=())
    assert files._digest(tinyroberta.Embedder(same.model, same.tokenizer, other)) != files._digest(same)


# With Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster on loopback, which writes to one temporary folder and leaves no process."""
    pytest.importorskip("ray.data")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        token = Path(folder) / "token"  # else Ray writes one in the home folder
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        for name, value in {
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        }.items():
            patch.setenv(name, value)
        import ray as module

        module.init(
            num_cpus=3, num_gpus=0, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
            object_store_memory=2**28, _temp_dir=folder, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )  # fmt: skip
        module.data.DataContext.get_current().enable_progress_bars = False
        started = children("ray")
        yield module
        module.shutdown()
        assert psutil.wait_procs([*started, *children("ray")], 30)[1] == []


def children(word: str) -> list[Any]:
    """Processes below this one whose command has a word."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until(done: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.02)


TWO = {"concurrency": 2, "num_cpus": 1}


def by_number(rows: Any) -> tuple[list[int], np.ndarray[Any, Any]]:
    rows = sorted(rows, key=lambda row: row["n"])
    return [row["n"] for row in rows], np.stack([row["embedding"] for row in rows])


@pytest.mark.parametrize(("blocks", "actors", "size"), [(1, 1, 4096), (7, 2, 33)])
def test_bits_depend_on_no_number_of_actors_or_blocks(blocks: int, actors: int, size: int, ray: Any, embedder: Any) -> None:
    texts = texts_of(300)
    given = ray.data.from_items([{"n": n, "text": text} for n, text in enumerate(texts)], override_num_blocks=blocks)
    made = bulk.embed(given, concurrency=actors, num_cpus=1, batch_size=size)
    numbers, vectors = by_number(made.take_all())
    assert numbers == list(range(300))
    assert np.array_equal(vectors, embedder.encode(texts))


def test_files_by_their_folder_where_ray_has_it_run(ray: Any, embedder: Any, tmp_path: Path) -> None:
    """The default: an actor a node, all its CPUs but one."""
    texts = texts_of(30)
    parquet.write_table(arrow.table({"n": range(30), "text": texts}), tmp_path / "a.parquet")
    assert cluster.places_of(ray, {}, None, None, None) == cluster.Places(1, 1, 2, 0, {})
    numbers, vectors = by_number(bulk.embed(tmp_path).take_all())
    assert numbers == list(range(30))
    assert np.array_equal(vectors, embedder.encode(texts))
    [made] = bulk.embed_files(tmp_path, tmp_path / "out")
    assert np.array_equal(vectors_of(parquet.read_table(made)["embedding"]), embedder.encode(texts))


@pytest.mark.parametrize(("each", "pieces"), [([2000], 2), ([1], 1), ([20] * 5, 2)])
@pytest.mark.usefixtures("ray")
def test_files_that_are_few_are_work_for_all_actors(each: list[int], pieces: int, embedder: Any, tmp_path: Path) -> None:
    """Where actors have none Ray warns, and warnings are errors here."""
    texts = texts_of(sum(each))
    starts = np.cumsum([0, *each])
    paths = [tmp_path / f"{start}.parquet" for start in starts[:-1]]
    for path, start, end in zip(paths, starts, starts[1:], strict=False):
        parquet.write_table(arrow.table({"n": range(start, end), "text": texts[start:end]}), path)
    made = bulk.embed(paths, **TWO).materialize()
    assert made.num_blocks() == pieces
    numbers, vectors = by_number(made.take_all())
    assert numbers == list(range(len(texts)))
    assert np.array_equal(vectors, embedder.encode(texts))


def test_files_are_listed_in_threads_that_import_this() -> None:
    """A module that one thread fails to import is half a module to others: Ray's threads take that for an error."""
    pytest.importorskip("ray.data")
    assert importlib.util.find_spec("aiohttp") is not None
    assert importlib.import_module("fsspec.implementations.http").HTTPFileSystem


def test_a_killed_actor_loses_no_row(ray: Any, embedder: Any, tmp_path: Path) -> None:
    texts = texts_of(6000)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for start in range(0, 6000, 500):
        table = arrow.table({"n": range(start, start + 500), "text": texts[start : start + 500]})
        parquet.write_table(table, source / f"{start:05}.parquet")
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: any(out.glob("*.parquet")))
        found = children("MapWorker(MapBatches(Tables))")
        found[0].kill()
        killed.extend([len(found), len(list(out.glob("*.parquet")))])

    killer = threading.Thread(target=kill)
    killer.start()
    given = ray.data.from_arrow([parquet.read_table(path) for path in sorted(source.iterdir())])
    bulk.embed(given, batch_size=100, **TWO).write_parquet(str(out))
    killer.join()
    made = parquet.read_table(out)
    assert killed[0] == 2
    assert 1 <= killed[1] < 12
    assert made.schema.field("embedding").type == arrow.list_(arrow.float32(), embedder.dimension)
    numbers, vectors = by_number(made.to_pylist())
    assert numbers == list(range(6000))
    assert np.array_equal(vectors, embedder.encode(texts).astype(np.float64))


def test_a_driver_that_is_killed_goes_on_with_the_files_that_are_left(ray: Any, embedder: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    texts = texts_of(2000)
    for start in range(0, 2000, 250):
        table = arrow.table({"text": [*texts[start : start + 250], None], "n": range(251)})
        parquet.write_table(table, source / f"{start:05}.parquet")
    script = (
        "import sys, ray; from tinyroberta import bulk\n"
        "ray.init(sys.argv[3], log_to_driver=False, logging_level=50)\n"
        "bulk.embed_files(sys.argv[1], sys.argv[2], concurrency=2, num_cpus=1)"
    )
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(source), str(out), address], env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= 2 or driver.poll() is not None)
    driver.kill()
    driver.wait()
    wait_until(lambda: not children("MapWorker(MapBatches(Files))"))  # for its actors die after it
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 2 <= len(before) < 8
    targets = bulk.embed_files(source, out, **TWO)
    assert targets == [out / path.name for path in sorted(source.iterdir())]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    for start, target in zip(range(0, 2000, 250), targets, strict=True):
        made = parquet.read_table(target)
        assert made.drop_columns("embedding").equals(parquet.read_table(source / target.name))
        assert made["embedding"][250].as_py() is None
        assert np.array_equal(vectors_of(made["embedding"].drop_null()), embedder.encode(texts[start : start + 250]))
    left = {path.name for path in out.iterdir()} - {path.name for path in targets}
    assert left == {files.RECORD, f".{files.RECORD}.lock"}


def test_a_folder_of_another_job_is_refused(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "mapped", lambda *_: ray.data.range(1))
    source, out = tmp_path / "a.parquet", tmp_path / "out"
    parquet.write_table(arrow.table({"text": ["a"], "other": ["b"]}), source)
    bulk.embed_files(source, out)
    (out / "a.parquet").touch()
    for how, told in (
        ({"column": "other"}, "another column"),
        ({"into": "v"}, "another into"),
        ({"normalize": False}, "another normalize"),
        ({"matmul_precision": "medium"}, "another matmul_precision"),
        ({"backend": "numpy"}, "another backend"),
    ):
        with pytest.raises(Error, match=told):
            bulk.embed_files(source, out, **how)
    bulk.embed_files(source, out, batch_tokens=7, threads=1, backend=None)
    bulk.embed_files(source, out, backend=read(out)["backend"])
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_opened", {})
        patch.setattr("tinyroberta.keywords.default_backend", lambda: "numpy")
        with pytest.raises(Error, match="another backend"):
            bulk.embed_files(source, out)
    with pytest.raises(Error, match=f"another process writes {out} now"), files._recorded(out, read(out), {}):
        bulk.embed_files(source, out)
    again = tmp_path / "b" / "a.parquet"
    again.parent.mkdir()
    again.write_bytes(source.read_bytes())
    with pytest.raises(Error, match="two files are named a"):
        bulk.embed_files([source, again], out)
    with pytest.raises(Error, match="was made of"):
        bulk.embed_files(again, out)
    os.utime(source, (time.time() + 9, time.time() + 9))
    with pytest.raises(Error, match="has changed since"):
        bulk.embed_files(source, out)
    (tmp_path / "full").mkdir()
    parquet.write_table(arrow.table({"a": [1]}), tmp_path / "full" / "x.parquet")
    with pytest.raises(Error, match="holds Parquet files of others"):
        bulk.embed_files(source, tmp_path / "full")
    assert not (tmp_path / "full" / files.RECORD).exists()


def read(out: Path) -> Any:
    return json.loads((out / files.RECORD).read_text())["settings"]


def test_a_mistake_is_told_before_the_job(ray: Any, tmp_path: Path) -> None:
    given = ray.data.from_items([{"n": 1, "text": "a"}])
    for how, told in (
        ({"column": "txt"}, "the dataset has no column txt: there are n, text"),
        ({"column": "n"}, "the column n of the dataset is of int64"),
        ({"into": "n"}, "has a column n already"),
        ({"model": "/there/is/none"}, "there is no folder"),
        ({"model": 3}, "a model is of type int"),
        ({"speed": 3}, "speed"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": (2, 1)}, "concurrency is"),
        ({"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(Error, match=told):
            bulk.embed(given, **how)
    with pytest.raises(Error, match="a dataset is of type int"):
        bulk.embed(3)
    with pytest.raises(Error, match="there is no file"):
        bulk.embed(tmp_path / "none.parquet")
    with pytest.raises(Error, match="there is no file"):
        bulk.embed_files(tmp_path / "none.parquet", tmp_path)
    with pytest.raises(Error, match="on no disk"):
        bulk.embed_files("s3://a/b.parquet", tmp_path)
    with pytest.raises(Error, match="there is no Parquet file"):
        bulk.embed_files(tmp_path, tmp_path / "out")
    given.context.max_errored_blocks = 1
    with pytest.raises(Error, match="max_errored_blocks"):
        bulk.embed(given)

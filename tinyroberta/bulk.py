"""Vectors of tables of texts: of one Arrow table, of a stream of Arrow batches, and on a cluster of machines by Ray Data.

Each row is kept, with one column more; a text that is null has a vector that is null. A vector is made of its own text alone
(tasks/embed.py), so its bits do not depend on how rows fall into files, blocks, batches and actors.
"""

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .cli.reading import column_of, import_arrow
from .cli.writing import changed, lock
from .errors import Error
from .tasks.embed import Embedder
from .tasks.sentence_transformers import Dense
from .weights.hub import on_disk

ENCODE = ("prompt_name", "prompt", "normalize", "max_length", "truncate_dim", "long", "batch_tokens")  # encode's keywords
ROWS = 1024  # that Ray hands to an actor together
GROUP = 8192  # rows of a row group that embed_files writes
RECORD = "_tinyroberta.json"  # in embed_files' folder: what its files depend on; what reads Parquet folders passes over a "_"
PROBE = "A first text."
_opened: dict[str, Embedder] = {}
_opening = threading.Lock()


def embed_table(
    table: Any, column: str = "text", *, model: Any = None, into: str = "embedding", revision: str | None = None, **how: Any
) -> Any:
    """A pyarrow Table or RecordBatch with one column more, `into`: the vectors of a column of texts, fixed-size lists of float32.

    A null text has a null vector. model: an Embedder; or a folder, a Hub repository or None (the embedded model), which is opened
    once a process. how: Embedder.from_pretrained's keywords (backend, dtype, matmul_precision, threads, reproducible) and
    encode's (prompt_name, prompt, normalize, max_length, truncate_dim, long, batch_tokens). Raises Error on a column that is
    not there or not of strings, one named `into` that is, and as from_pretrained and encode.
    """
    _check_columns(table.schema, column, into)
    running, encode = _parted(how)
    return _with_vectors(table, column, into, _embedder(model, revision, running), encode)


def embed_batches(
    batches: Iterable[Any],
    column: str = "text",
    *,
    model: Any = None,
    into: str = "embedding",
    revision: str | None = None,
    **how: Any,
) -> Iterator[Any]:
    """RecordBatches, one after another, each with its vectors as `embed_table` has them, but in lists of any length.

    That is what Spark's DataFrame.mapInArrow asks for, whose arrays have no fixed size. Raises Error as embed_table.
    """
    arrow = import_arrow()
    for batch in batches:
        made = embed_table(batch, column, model=model, into=into, revision=revision, **how)
        place = made.schema.get_field_index(into)
        lists = arrow.list_(arrow.float32())
        columns = [x.cast(lists) if n == place else x for n, x in enumerate(made.columns)]
        yield arrow.RecordBatch.from_arrays(columns, schema=made.schema.set(place, arrow.field(into, lists)))


def embed(
    dataset: Any,
    column: str = "text",
    *,
    model: str | Path | None = None,
    into: str = "embedding",
    revision: str | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    batch_size: int = ROWS,
    **how: Any,
) -> Any:
    """A ray.data.Dataset, or Parquet files by their path or paths, as a lazy Dataset with embed_table's column more.

    concurrency: how many actors, or the least and the most; one for each node where it is None, and with backend="cupy" one for
    each GPU. num_cpus, num_gpus: what Ray sets aside for each: all the CPUs of a node but one, which is left to reading and
    writing, or one GPU. An actor runs as many threads as its node has CPUs, or num_cpus where that is given. batch_size: rows
    that Ray hands over together; an actor packs them by batch_tokens. model, how: as embed_table, read on every node under the
    same name. All that is given is checked here, before the job: the model is opened, a text is embedded, and the dataset is
    asked for its schema. Raises Error as embed_table, on max_errored_blocks, which would leave out rows, and without Ray.
    """
    ray = _import_ray()
    running, encode = _parted(how)
    if isinstance(dataset, str | Path | list | tuple):
        paths = [str(path) for path in ([dataset] if isinstance(dataset, str | Path) else dataset)]
        if absent := [path for path in paths if "://" not in path and not Path(path).exists()]:
            raise Error(f"there is no file {absent[0]}")
        dataset = ray.data.read_parquet(paths)
    if not isinstance(dataset, ray.data.Dataset):
        raise Error(f"a dataset is of type {type(dataset).__name__}; it must be a ray.data.Dataset, or paths of Parquet files")
    _check_schema(dataset.schema(), column, into)
    model = _absolute(model)
    _probe(model, revision, running, encode)
    given = {"column": column, "into": into, "model": model, "revision": revision, "encode": encode}
    return _mapped(ray, dataset, _Tables, given, running, concurrency, num_cpus, num_gpus, batch_size)


def embed_files(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    column: str = "text",
    *,
    model: str | Path | None = None,
    into: str = "embedding",
    revision: str | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **how: Any,
) -> list[Path]:
    """For each Parquet file, or each of a folder, one of the same name in the folder `out`, with its vectors; the paths written.

    A file gets its name in one step, when it is whole: called again, after whatever killed it, this passes over those that are
    there. paths and out are on a disk that every node sees. The other arguments are `embed`'s; an actor takes one file at a
    time. Raises Error as embed, and where `out` was written with another model or other arguments, for other files of
    the same name, for files that have changed since, or is being written.
    """
    ray = _import_ray()
    running, encode = _parted(how)
    sources = _sources(paths)
    parquet = _parquet()
    for source in sources:
        try:
            schema = parquet.read_schema(source)
        except (import_arrow().ArrowException, OSError) as error:
            raise Error(f"cannot read {source}: {str(error).partition(chr(10))[0]}") from error
        _check_columns(schema, column, into, str(source))
    model, folder = _absolute(model), Path(out).expanduser().absolute()
    embedder = _probe(model, revision, running, encode)
    settings = {"model": _digest(embedder), "column": column, "into": into, **_told(running, encode)}
    with _recorded(folder, settings, {source.name: str(source) for source in sources}):
        targets = [folder / source.name for source in sources]
        pairs = list(zip(sources, targets, strict=True))
        if newer := [s for s, t in pairs if t.exists() and s.stat().st_mtime > t.stat().st_mtime]:
            raise Error(
                f"{newer[0]} has changed since {folder / newer[0].name} was made of it: delete that, or name another folder"
            )
        todo = [{"source": str(s), "target": str(t)} for s, t in pairs if not t.exists()]
        if todo:
            given = {"column": column, "into": into, "model": model, "revision": revision, "encode": encode}
            files = ray.data.from_items(todo, override_num_blocks=len(todo))
            _mapped(ray, files, _Files, given, running, concurrency, num_cpus, num_gpus, None, 1).materialize()
    return targets


# What is given


def _parted(how: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """from_pretrained's keywords and encode's."""
    encode = {name: value for name, value in how.items() if name in ENCODE}
    return {name: value for name, value in how.items() if name not in ENCODE}, encode


def _absolute(model: Any) -> str | None:
    """A checkpoint's name that a process in another folder understands."""
    if model is not None and not isinstance(model, str | Path):
        raise Error(f"a model is of type {type(model).__name__}; it must be a folder, a Hub repository's name or None")
    return None if model is None else str(Path(model).expanduser().absolute()) if on_disk(model) else str(model)


def _check_columns(schema: Any, column: str, into: str, name: str = "the table") -> None:
    """Raises Error unless an Arrow schema has a column of strings and none named `into`."""
    column_of(schema.names, column, name)
    if into in schema.names:
        raise Error(f"{name} has a column {into} already: name another by into=")
    types, kind = import_arrow().types, schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    views = getattr(types, "is_string_view", lambda _: False)
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or views(kind)):
        raise Error(f"the column {column} of {name} is of {kind}; it must be of strings")


def _check_schema(schema: Any, column: str, into: str) -> None:
    """`_check_columns` of a Ray dataset, whose blocks may also be pandas' and then say no types."""
    if schema is not None and isinstance(schema.base_schema, import_arrow().Schema):
        _check_columns(schema.base_schema, column, into, "the dataset")
    elif schema is not None:
        column_of(schema.names, column, "the dataset")
        if into in schema.names:
            raise Error(f"the dataset has a column {into} already: name another by into=")


def _probe(model: str | None, revision: str | None, running: dict[str, Any], encode: dict[str, Any]) -> Embedder:
    """An embedder of what is given, which has made one vector; a driver has no GPU."""
    here = {**running, "backend": "numpy"} if running.get("backend") == "cupy" else running
    embedder = _embedder(model, revision, here)
    embedder.encode(PROBE, **encode)
    return embedder


# Tables


def _embedder(model: Any, revision: str | None, running: dict[str, Any]) -> Embedder:
    """An Embedder itself, or the one of a checkpoint, which this process keeps until it is asked for another."""
    if isinstance(model, Embedder):
        if running or revision is not None:
            told = ", ".join([*running, *(["revision"] if revision is not None else [])])
            raise Error(f"{told} cannot be given with a model that is loaded: give it to from_pretrained")
        return model
    key = repr((model, revision, sorted(running.items())))
    with _opening:
        if key not in _opened:
            _opened.clear()
            _opened[key] = Embedder.from_pretrained(model, revision=revision, **running)
        return _opened[key]


def _with_vectors(table: Any, column: str, into: str, embedder: Embedder, encode: dict[str, Any]) -> Any:
    """A Table or RecordBatch with its vectors."""
    arrow = import_arrow()
    texts = table.column(column).to_pylist()
    there = [text for text in texts if text is not None]
    made = embedder.encode(there, progress=False, **encode)
    width = made.shape[1]
    if len(there) < len(texts):
        absent = np.array([text is None for text in texts], bool)
        rows = np.zeros((len(texts), width), np.float32)
        rows[~absent] = made
        vectors = arrow.FixedSizeListArray.from_arrays(rows.ravel(), width, mask=arrow.array(absent))
    else:
        vectors = arrow.FixedSizeListArray.from_arrays(np.ascontiguousarray(made).ravel(), width)
    field = arrow.field(into, vectors.type)
    return type(table).from_arrays([*table.columns, vectors], schema=table.schema.append(field))


# Ray


def _import_ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise Error("many machines need Ray Data: pip install 'tinyroberta[ray]'") from error
    return ray


def _mapped(
    ray: Any,
    dataset: Any,
    actor: type,
    given: dict[str, Any],
    running: dict[str, Any],
    concurrency: int | tuple[int, int] | None,
    num_cpus: float | None,
    num_gpus: float | None,
    batch_size: int | None,
    in_flight: int | None = None,
) -> Any:
    """A dataset through actors, which Ray Data starts again where they die, as often as they do, with what they had begun."""
    if dataset.context.max_errored_blocks:
        raise Error("DataContext.max_errored_blocks leaves out the rows of what fails: set it to 0")
    if not ray.is_initialized():
        ray.init()
    gpu = running.get("backend") == "cupy"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    found = int(sum(node.get("GPU", 0) for node in nodes)) if gpu else len(cpus)
    if concurrency is None and not found:
        raise Error(f"the cluster has no {'GPU' if gpu else 'CPU'}: say how many actors by concurrency=")
    if num_cpus is not None and not gpu and num_cpus >= 1:
        running = {"threads": int(num_cpus), **running} if running.get("backend") != "numpy" else running
    if num_cpus is None:
        num_cpus = 1 if gpu else max(0, min(cpus, default=1) - 1)
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    least, most = (found, found) if concurrency is None else (least, most)
    if not isinstance(least, int) or not isinstance(most, int) or not 1 <= least <= most:
        raise Error(f"concurrency is {concurrency!r}; it must be a number of actors of at least 1, or the least and the most")
    strategy = {"min_size": least, "max_size": most, "max_tasks_in_flight_per_actor": in_flight}
    try:
        compute = ray.data.ActorPoolStrategy(**strategy)
        return dataset.map_batches(
            actor, fn_constructor_kwargs={**given, "running": running}, batch_format="pyarrow", batch_size=batch_size,
            compute=compute, num_cpus=num_cpus, num_gpus=(1 if gpu else 0) if num_gpus is None else num_gpus,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise Error(f"Ray does not take what is given: {str(error).partition(chr(10))[0]}") from error


class _Tables:
    """An actor: tables in, tables with vectors out."""

    def __init__(self, column: str, into: str, model: str | None, revision: str | None, running: Any, encode: Any) -> None:
        self.column, self.into, self.encode = column, into, encode
        self.embedder = Embedder.from_pretrained(model, revision=revision, **running)

    def __call__(self, table: Any) -> Any:
        _check_columns(table.schema, self.column, self.into, "the dataset")
        return _with_vectors(table, self.column, self.into, self.embedder, self.encode)


class _Files(_Tables):
    """An actor: names of files in and out."""

    def __call__(self, table: Any) -> Any:
        for pair in table.to_pylist():
            self.write(Path(pair["source"]), Path(pair["target"]))
        return table

    def write(self, source: Path, target: Path) -> None:
        """One file, which gets its name when it is whole."""
        parquet = _parquet()
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        with parquet.ParquetFile(source) as file:
            empty = _with_vectors(file.schema_arrow.empty_table(), self.column, self.into, self.embedder, self.encode)
            with part.open("wb") as stream:
                with parquet.ParquetWriter(stream, empty.schema) as writer:
                    for batch in file.iter_batches(GROUP):
                        writer.write_batch(_with_vectors(batch, self.column, self.into, self.embedder, self.encode))
                stream.flush()
                os.fsync(stream.fileno())
        part.replace(target)


# Files


def _parquet() -> Any:
    import_arrow()
    from pyarrow import parquet

    return parquet


def _sources(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that are given, or those of a folder; raises Error on none, on one that is not there, and on two of one name."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if far := [path for path in given if "://" in str(path)]:
        raise Error(f"{far[0]} is on no disk of this machine: copy it, or use embed and write_parquet")
    found: list[Path] = []
    for path in (Path(path).expanduser().absolute() for path in given):
        found += sorted(path.glob("[!._]*.parquet")) if path.is_dir() else [path]
    if absent := [path for path in found if not path.is_file()]:
        raise Error(f"there is no file {absent[0]}")
    names = [path.name for path in found]
    if twice := [path for path in found if names.count(path.name) > 1] if len(set(names)) < len(names) else []:
        raise Error(f"two files are named {twice[0].name}: what is made of them would have one name")
    if not found:
        raise Error(f"there is no Parquet file in {', '.join(map(str, given)) or 'an empty list'}")
    return found


def _digest(embedder: Embedder) -> str:
    """Of all that a vector depends on besides its text and the keywords: tensors, configuration, recipe, tokenizer."""
    found = hashlib.sha256(repr(embedder.model.config).encode())
    found.update(repr(embedder.recipe._replace(folder=Path(), after=())).encode())
    layers = {f"after.{n}.{name}": x for n, step in enumerate(embedder.recipe.after) for name, x in _arrays(step).items()}
    for name, x in {**embedder.model.tensors, **layers}.items():
        found.update(f"{name} {x.dtype} {x.shape}".encode())
        found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    found.update(embedder.tokenizer.to_str().encode())
    return found.hexdigest()


def _arrays(step: Any) -> dict[str, Any]:
    """A step after pooling as arrays: a Dense layer's own, and what kind of step it is."""
    kind = {repr(type(step).__name__ if not isinstance(step, Dense) else step.activation): np.zeros(0, np.float32)}
    parts = {name: getattr(step, name) for name in ("weight", "bias", "residual")} if isinstance(step, Dense) else {}
    return kind | {name: np.asarray(x) for name, x in parts.items() if x is not None}


def _told(running: Mapping[str, Any], encode: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that a vector's bits depend on, as JSON has them."""
    kept = {**running, **encode}
    return {name: kept[name] if isinstance(kept[name], int | float | str | None) else str(kept[name]) for name in sorted(kept)
            if name not in ("threads", "batch_tokens") and kept[name] is not None}  # fmt: skip


@contextmanager
def _recorded(folder: Path, settings: dict[str, Any], sources: dict[str, str]) -> Iterator[None]:
    """A folder that holds files of these settings alone, which this process alone writes; raises Error on another."""
    record = folder / RECORD
    if not record.exists() and folder.is_dir() and any(folder.glob("*.parquet")):
        raise Error(f"{folder} holds Parquet files of others: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{RECORD}.lock").open("ab") as held:
        lock(held, folder)
        before = json.loads(record.read_text()) if record.exists() else {"settings": settings, "sources": {}}
        if before["settings"] != settings:
            told = changed(before["settings"], settings)
            raise Error(f"{folder} was written with another {told}: give the same, or name another folder")
        for name, source in sources.items():
            if before["sources"].get(name, source) != source:
                raise Error(f"{folder / name} was made of {before['sources'][name]}, and not of {source}: name another folder")
        for left in folder.glob(".*.part"):
            left.unlink()
        part = folder / f".{RECORD}.part"
        part.write_text(json.dumps({"settings": settings, "sources": before["sources"] | sources}, indent=1) + "\n")
        part.replace(record)
        yield

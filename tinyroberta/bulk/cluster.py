"""Datasets of Ray Data through actors, on as many machines as the cluster has."""

from pathlib import Path
from typing import Any, NamedTuple

from ..columns import column_of, import_arrow
from ..errors import Error
from ..tasks.embed import Embedder
from ..weights.hub import on_disk
from .tables import check_columns, embedder_of, parted, with_vectors

ROWS = 1024  # that Ray hands to an actor together
BLOCK = 8192  # rows that begin anew where an actor dies
PROBE = "A first text."


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
    ray = import_ray()
    running, encode = parted(how)
    from_paths = isinstance(dataset, str | Path | list | tuple)
    if from_paths:
        paths = [str(path) for path in ([dataset] if isinstance(dataset, str | Path) else dataset)]
        if absent := [path for path in paths if "://" not in path and not Path(path).exists()]:
            raise Error(f"there is no file {absent[0]}")
        dataset = ray.data.read_parquet(paths)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise Error(f"batch_size is {batch_size!r}; it must be a number of rows of at least 1")
    if not isinstance(dataset, ray.data.Dataset):
        raise Error(f"a dataset is of type {type(dataset).__name__}; it must be a ray.data.Dataset, or paths of Parquet files")
    _check_schema(dataset.schema(), column, into)
    model = absolute(model)
    probe(model, revision, running, encode)
    places = places_of(ray, running, concurrency, num_cpus, num_gpus)
    if from_paths:  # else a file is one block, whatever its length, and one actor's
        count = dataset.count()
        places = places.at_most(count)
        rows = max(1, min(BLOCK, count // places.most))
        batch_size = min(batch_size, rows)  # for Ray puts blocks together up to a batch
        dataset = dataset.repartition(target_num_rows_per_block=rows)
    given = {"column": column, "into": into, "model": model, "revision": revision, "encode": encode}
    return mapped(ray, dataset, Tables, given, places, batch_size)


def import_ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise Error("many machines need Ray Data: pip install 'tinyroberta[ray]'") from error
    return ray


def absolute(model: Any) -> str | None:
    """A checkpoint's name that a process in another folder understands."""
    if model is not None and not isinstance(model, str | Path):
        raise Error(f"a model is of type {type(model).__name__}; it must be a folder, a Hub repository's name or None")
    return None if model is None else str(Path(model).expanduser().absolute()) if on_disk(model) else str(model)


def _check_schema(schema: Any, column: str, into: str) -> None:
    """`check_columns` of a Ray dataset, whose blocks may also be pandas' and then say no types."""
    if schema is not None and isinstance(schema.base_schema, import_arrow().Schema):
        check_columns(schema.base_schema, column, into, "the dataset")
    elif schema is not None:
        column_of(schema.names, column, "the dataset")
        if into in schema.names:
            raise Error(f"the dataset has a column {into} already: name another by into=")


def probe(model: str | None, revision: str | None, running: dict[str, Any], encode: dict[str, Any]) -> Embedder:
    """An embedder of what is given, which has made one vector; a driver has no GPU."""
    here = {**running, "backend": "numpy"} if running.get("backend") == "cupy" else running
    embedder = embedder_of(model, revision, here)
    embedder.encode(PROBE, **encode)
    return embedder


class Places(NamedTuple):
    """Actors: the least and the most, what Ray sets aside for each, and from_pretrained's keywords there."""

    least: int
    most: int
    num_cpus: float
    num_gpus: float
    running: dict[str, Any]

    def at_most(self, count: int) -> "Places":
        """No more actors than pieces of work, but one."""
        return self._replace(least=min(self.least, max(1, count)), most=min(self.most, max(1, count)))


def places_of(
    ray: Any,
    running: dict[str, Any],
    concurrency: int | tuple[int, int] | None,
    num_cpus: float | None,
    num_gpus: float | None,
) -> Places:
    """Where actors run, by what is given and what the cluster has; Ray is started where it is not."""
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
    return Places(least, most, num_cpus, (1 if gpu else 0) if num_gpus is None else num_gpus, running)


def mapped(
    ray: Any,
    dataset: Any,
    actor: type,
    given: dict[str, Any],
    places: Places,
    batch_size: int | None,
    in_flight: int | None = None,
) -> Any:
    """A dataset through actors, which Ray Data starts again where they die, as often as they do, with what they had begun."""
    if dataset.context.max_errored_blocks:
        raise Error("DataContext.max_errored_blocks leaves out the rows of what fails: set it to 0")
    strategy = {"min_size": places.least, "max_size": places.most, "max_tasks_in_flight_per_actor": in_flight}
    try:
        compute = ray.data.ActorPoolStrategy(**strategy)
        return dataset.map_batches(
            actor, fn_constructor_kwargs={**given, "running": places.running}, batch_format="pyarrow", batch_size=batch_size,
            compute=compute, num_cpus=places.num_cpus, num_gpus=places.num_gpus,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise Error(f"Ray does not take what is given: {str(error).partition(chr(10))[0]}") from error


class Tables:
    """An actor: tables in, tables with vectors out."""

    def __init__(self, column: str, into: str, model: str | None, revision: str | None, running: Any, encode: Any) -> None:
        self.column, self.into, self.encode = column, into, encode
        self.embedder = Embedder.from_pretrained(model, revision=revision, **running)

    def __call__(self, table: Any) -> Any:
        check_columns(table.schema, self.column, self.into, "the dataset")
        return with_vectors(table, self.column, self.into, self.embedder, self.encode)

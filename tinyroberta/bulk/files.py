"""Parquet files in and out, one by one: a job that was killed goes on with the files that are left."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import import_arrow
from ..errors import Error
from ..tasks.embed import Embedder
from ..tasks.sentence_transformers import Dense
from ..weights.files import changed, lock, read_json, write_atomically, write_json
from .cluster import BLOCK, Tables, absolute, import_ray, mapped, places_of, probe
from .tables import check_columns, parted, with_vectors

RECORD = "_tinyroberta.json"  # in embed_files' folder: what its files depend on; what reads Parquet folders passes over a "_"


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
    ray = import_ray()
    running, encode = parted(how)
    sources = _sources(paths)
    parquet = _parquet()
    for source in sources:
        try:
            schema = parquet.read_schema(source)
        except (import_arrow().ArrowException, OSError) as error:
            raise Error(f"cannot read {source}: {str(error).partition(chr(10))[0]}") from error
        check_columns(schema, column, into, str(source))
    model, folder = absolute(model), Path(out).expanduser().absolute()
    embedder = probe(model, revision, running, encode)
    settings = {"model": _digest(embedder), "column": column, "into": into, **_told(embedder, running, encode)}
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
            places = places_of(ray, running, concurrency, num_cpus, num_gpus).at_most(len(todo))
            mapped(ray, files, Files, given, places, None, 1).materialize()
    return targets


class Files(Tables):
    """An actor: names of files in and out."""

    def __call__(self, table: Any) -> Any:
        for pair in table.to_pylist():
            self.write(Path(pair["source"]), Path(pair["target"]))
        return table

    def write(self, source: Path, target: Path) -> None:
        """One file, which gets its name when it is whole."""
        parquet = _parquet()

        def write(part: Path) -> None:
            with parquet.ParquetFile(source) as file, part.open("wb") as stream:
                empty = with_vectors(file.schema_arrow.empty_table(), self.column, self.into, self.embedder, self.encode)
                with parquet.ParquetWriter(stream, empty.schema) as writer:
                    for batch in file.iter_batches(BLOCK):
                        writer.write_batch(with_vectors(batch, self.column, self.into, self.embedder, self.encode))
                stream.flush()
                os.fsync(stream.fileno())

        write_atomically(target, write)


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


def _told(embedder: Embedder, running: Mapping[str, Any], encode: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that a vector's bits depend on, as JSON has them; a backend that is not named is the one of this machine."""
    kept = {**running, **encode, "backend": running.get("backend") or embedder.model.backend}
    return {name: kept[name] if isinstance(kept[name], int | float | str) else str(kept[name]) for name in sorted(kept)
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
        before = read_json(record) if record.exists() else {"settings": settings, "sources": {}}
        if before["settings"] != settings:
            told = changed(before["settings"], settings)
            raise Error(f"{folder} was written with another {told}: give the same, or name another folder")
        for name, source in sources.items():
            if before["sources"].get(name, source) != source:
                raise Error(f"{folder / name} was made of {before['sources'][name]}, and not of {source}: name another folder")
        for left in folder.glob(".*.part"):
            left.unlink()
        write_json(record, {"settings": settings, "sources": before["sources"] | sources})
        yield

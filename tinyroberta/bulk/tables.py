"""Arrow tables with vectors: one table, batches one after another, and what is checked before."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..columns import column_of, import_arrow
from ..errors import Error
from ..tasks.embed import Embedder

ENCODE = ("prompt_name", "prompt", "normalize", "max_length", "truncate_dim", "long", "batch_tokens")  # encode's keywords
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
    check_columns(table.schema, column, into)
    running, encode = parted(how)
    return with_vectors(table, column, into, embedder_of(model, revision, running), encode)


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


def parted(how: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """from_pretrained's keywords and encode's."""
    encode = {name: value for name, value in how.items() if name in ENCODE}
    return {name: value for name, value in how.items() if name not in ENCODE}, encode


def check_columns(schema: Any, column: str, into: str, name: str = "the table") -> None:
    """Raises Error unless an Arrow schema has a column of strings and none named `into`."""
    column_of(schema.names, column, name)
    if into in schema.names:
        raise Error(f"{name} has a column {into} already: name another by into=")
    types, kind = import_arrow().types, schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    views = getattr(types, "is_string_view", lambda _: False)
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or views(kind)):
        raise Error(f"the column {column} of {name} is of {kind}; it must be of strings")


def embedder_of(model: Any, revision: str | None, running: dict[str, Any]) -> Embedder:
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


def with_vectors(table: Any, column: str, into: str, embedder: Embedder, encode: dict[str, Any]) -> Any:
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

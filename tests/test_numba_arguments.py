"""backends/numba/arguments.py: a kernel reads by name what it is given by name; a wrong name or value is an error at launch."""

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from tinyroberta.backends.numba import compiled
from tinyroberta.backends.numba.arguments import Fields
from tinyroberta.backends.numba.threads import parallel

PLACE = Fields("row", "column")
FIELDS = Fields("first", "x", "last", factor=np.float32, place=PLACE, bias=np.float32)


def given(**changes: Any) -> dict[str, Any]:
    return {"first": -1, "x": None, "last": 2**40, "factor": 1.5, "place": {"row": 7, "column": 8}, "bias": -0.25} | changes


def test_values_stand_where_their_names_say() -> None:
    x = np.arange(3.0)
    words = np.array(FIELDS.words(given(x=x)), np.int64)
    (record,) = words.view(FIELDS.dtype)
    assert (record["first"], record["x"], record["last"]) == (-1, x.ctypes.data, 2**40)
    assert (record["factor"], record["bias"], record["place"].tolist()) == (1.5, -0.25, (7, 8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"left": 3}, r"misses \[\] and knows no \['left'\]"),
        ({"place": {"row": 7}}, r"misses \['column'\]"),
        ({"first": 1.0}, "first cannot be of type float"),
        ({"first": np.int64(1)}, "first cannot be of type int64"),
        ({"factor": 1}, "factor cannot be of type int"),
    ],
)
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        FIELDS.words(given(**changes))


def test_a_kernel_that_misses_a_name_is_not_run() -> None:
    for kernel in compiled.Kernel.every:
        if kernel.fields is not None:
            with pytest.raises(TypeError, match=f"misses .*'{next(iter(kernel.fields.kinds))}'"):
                parallel(kernel, 1)


def test_a_kernel_reads_what_it_is_given(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.keep_promises()
    from numba import carray

    from tinyroberta.backends.numba.machine.memory import floats

    def scaled(given, block, worker):  # noqa: ARG001
        y = carray(floats(given.x), given.last)
        y[block] = y[block] * given.factor + given.bias + np.float32(given.place.column - given.place.row)

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled.Kernel, "every", [])
    kernel = partial(compiled.Kernel, fields=FIELDS)(scaled)
    x = np.arange(3, dtype=np.float32)
    parallel(kernel, 3, **given(x=x, last=3))
    assert x.tolist() == [0.75, 2.25, 3.75]

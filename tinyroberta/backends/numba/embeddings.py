"""Rows of tables, added up: a word's (or the vector given for it), its segment's, its position's."""

import numpy as np

from .buffers import by_numpy, contiguous, reused
from .compiled import Kernel, carray
from .machine.memory import floats, words
from .threads import parallel


@Kernel
def _embed(arguments, block, worker):
    """A block is 16 rows: the word's row (or the vector given for it), plus the segment's, plus the position's."""
    given = carray(words(arguments), 10)
    T, D = given[7], given[8]
    word_of, position_of, type_of = carray(words(given[1]), T), carray(words(given[3]), T), carray(words(given[5]), T)
    out = carray(floats(given[9]), (T, D))
    for t in range(block * 16, min(block * 16 + 16, T)):
        w = carray(floats(given[0] + 4 * D * (word_of[t] if given[1] else t)), D)
        s = carray(floats(given[4] + 4 * D * type_of[t]), D)
        row = out[t]
        for j in range(D):
            row[j] = w[j] + s[j]
        if given[2]:
            p = carray(floats(given[2] + 4 * D * position_of[t]), D)
            for j in range(D):
                row[j] += p[j]


def embed(ids, positions, token_types, word, position, token_type):
    if ids.ndim == 1 and word.dtype != np.float32:
        by_numpy()
        ids = word[ids]
    vectors = ids.ndim == 2
    T, D = len(ids), token_type.shape[1]
    out = reused((T, D), np.float32)
    table = contiguous(ids, np.float32) if vectors else word
    where = [None if x is None else contiguous(x, np.int64) for x in (None if vectors else ids, positions, token_types)]
    places = None if positions is None else position
    parallel(_embed, -(-T // 16), table, where[0], places, where[1], token_type, where[2], 0, T, D, out)
    return out

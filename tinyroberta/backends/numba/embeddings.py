"""Rows of tables, added up: a word's (or the vector given for it), its segment's, its position's."""

from functools import partial

import numpy as np

from .arguments import Fields
from .buffers import by_numpy, contiguous, reused
from .compiled import Kernel, carray
from .machine.memory import floats, words
from .sizes import TILE_ROWS
from .threads import parallel


@partial(Kernel, fields=Fields("word", "word_ids", "position", "position_ids", "token_type", "token_type_ids", "T", "D", "out"))
def _embed(given, block, worker):
    """A block is 16 rows: the word's (without word_ids, the vector given for it), plus the segment's, plus the position's."""
    T, D = given.T, given.D
    word_of, position_of = carray(words(given.word_ids), T), carray(words(given.position_ids), T)
    type_of = carray(words(given.token_type_ids), T)
    out = carray(floats(given.out), (T, D))
    for t in range(block * TILE_ROWS, min((block + 1) * TILE_ROWS, T)):
        w = carray(floats(given.word + 4 * D * (word_of[t] if given.word_ids else t)), D)
        s = carray(floats(given.token_type + 4 * D * type_of[t]), D)
        row = out[t]
        for j in range(D):
            row[j] = w[j] + s[j]
        if given.position:
            p = carray(floats(given.position + 4 * D * position_of[t]), D)
            for j in range(D):
                row[j] += p[j]


def embed(ids, positions, token_types, word, position, token_type):
    """As the op of that name; `ids` may be vectors (T, D), and word embeddings may be held in 16 bits."""
    if ids.ndim == 1 and word.dtype != np.float32:
        by_numpy()
        ids = word[ids]
    vectors = ids.ndim == 2
    T, D = len(ids), token_type.shape[1]
    out = reused((T, D), np.float32)
    table = contiguous(ids, np.float32) if vectors else word
    where = [None if x is None else contiguous(x, np.int64) for x in (None if vectors else ids, positions, token_types)]
    given = dict(zip(("word_ids", "position_ids", "token_type_ids"), where, strict=True))
    given |= {"word": table, "position": None if positions is None else position, "token_type": token_type}
    parallel(_embed, -(-T // TILE_ROWS), T=T, D=D, out=out, **given)
    return out

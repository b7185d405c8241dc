"""Norms' gains moved into the weights that read them, for the backends whose products cut rows into digits."""

from typing import Any

import numpy as np

FOLD_ABOVE = 4.0  # times the root mean square

# Which weights read the norm of a branch, and nothing else.
READERS = {
    "attention": ("LayerNorm", ("self.query", "self.key", "self.value")),
    "crossattention": ("LayerNorm", ("self.query",)),
    "intermediate": ("LayerNorm", ("dense",)),
    "lm_head": ("layer_norm", ("decoder",)),
}


def fold(branch: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
    """Move a norm's gains and shifts into the weights that read it, where they would make its rows' digits coarse.

    W (g x + b) + c = (W g) x + (W b + c). A row's digits are relative to its largest number, so a channel that is far larger than
    the rest takes digits from them all; in a weight it does so too, but there eight products make up for it.
    """
    norm_name, readers = READERS[name]
    if norm_name not in branch:
        return branch, False
    gain, shift = (np.asarray(branch[norm_name][leaf], np.float64) for leaf in ("weight", "bias"))
    sizes = np.square(gain) + np.square(shift)
    if not np.isfinite(sizes).all() or sizes.max() <= FOLD_ABOVE**2 * sizes.mean():
        return branch, False
    branch = {key: dict(value) if isinstance(value, dict) else value for key, value in branch.items()}
    branch[norm_name] = {"weight": np.ones(len(gain), np.float32), "bias": np.zeros(len(gain), np.float32)}
    for reader in readers:
        *above, last = reader.split(".")
        parent = branch[above[0]] if above else branch
        weight = np.asarray(parent[last]["weight"], np.float64)
        parent[last] = {"weight": (weight * gain).astype(np.float32), "bias": parent[last]["bias"] + weight @ shift}
    return branch, True

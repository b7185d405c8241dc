# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From NumPy to machine code
#
# The same formula can take a hundred milliseconds or ten. It can give the same bits every time or not. This notebook takes
# the model's operations down to the machine: what limits them, what a compiler changes, what fewer bits cost, and how a
# product of matrices can be *exact*.
#
# Everything is timed here, on the machine that runs the notebook. So the times that you see are those of the machine that
# ran it last, on one core. The text says only what holds on any of them.
#
# You need about a quarter of an hour, and [the forward pass by hand](01_forward_by_hand.ipynb) before it.
#
# Shapes are written in comments: **T** tokens, **D** the width of a vector, **I** inputs and **O** outputs of a dense
# layer, **K** the numbers that a sum adds up.

# %% [markdown]
# The first cell is for a machine that does not have the library yet, such as Colab's. Put the repository (`!git clone`
# and its address) or the library's wheel (with the folder icon on the left) into the folder of this notebook. Elsewhere
# the cell does nothing.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

spec = importlib.util.find_spec("tinyroberta")
if spec is None or spec.origin is None:  # not installed; a folder that only has this name has no origin
    places = [*Path().glob("tinyroberta-*.whl"), *Path().glob("*/"), Path(), Path("..")]
    found = [place for place in places if place.suffix == ".whl" or (place / "tinyroberta" / "forward.py").exists()]
    assert found, "Put the repository, or its wheel, beside this notebook and run the cell again."
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{found[0].resolve()}[text]", "matplotlib"], check=True)
    importlib.invalidate_caches()

# %%
import math
import os
import time

for library in ("OPENBLAS", "MKL", "OMP", "VECLIB_MAXIMUM"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # one core for everything, so that times can be compared

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from tokenizers import Tokenizer

import tinyroberta
from tinyroberta.backends import Sequences, bitwise
from tinyroberta.backends import numpy as plain

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#d9782d", "#9aa5b1"
SIGNS = LinearSegmentedColormap.from_list("signs", [ORANGE, "#ffffff", BLUE])
plt.rc("figure", dpi=100)
plt.rc("font", size=10)
plt.rc("text", color=INK)
plt.rc("axes", titlesize=11, titlelocation="left", edgecolor=GREY, labelcolor=INK)
plt.rc("axes.spines", top=False, right=False)


# %%
def least(call, seconds=0.3):
    """The least time of a call: what disturbs a machine only ever makes it slower."""
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


# %% [markdown]
# ## 1. Two speeds of a machine
#
# An operation does two things: it computes, and it moves numbers between memory and the core. Each has a top speed. We
# measure them as [`benchmarks/ops.py`](../benchmarks/ops.py) does: the best that a large product of matrices does, and the
# best that a copy does of an array far too large for the caches.

# %%
square = np.ones((512, 512), np.float32)
one, other = np.ones(1 << 24, np.float32), np.zeros(1 << 24, np.float32)  # 67 MB each


def ceilings():  # operations a second, bytes a second
    products = 2 * 512**3 / least(lambda: square @ square, 1)  # a product and a sum for each of 512^3
    return products, 2 * one.nbytes / least(lambda: np.copyto(other, one), 1)  # read once, written once


peak, bandwidth = ceilings()
print(f"computes {peak / 1e9:6.0f} billion operations a second")
print(f"moves    {bandwidth / 1e9:6.1f} billion bytes a second")
print(f"so while one number of 4 bytes is moved, it could do {4 * peak / bandwidth:.0f} operations")
assert 4 * peak / bandwidth > 4

# %% [markdown]
# The last line decides nearly everything. Code that does *fewer* operations for each number that it moves waits for memory,
# and cleverer arithmetic does not help it.
#
# ## 2. LayerNorm in NumPy
#
# $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} \odot g + b$$
#
# Eight operations a number or so. The formula in NumPy is four lines, and each `-`, `/`, `*`, `+` is a trip through the
# whole array: read it, and write a *new* one, for which the system has to find fresh memory. The size is that of
# RoBERTa-base, $D = 768$, with 8192 tokens: 25 MB.

# %%
rng = np.random.default_rng(0)
T, D, eps = 8192, 768, 1e-5
x = rng.standard_normal((T, D), np.float32) + 1
gain, shift = rng.standard_normal((2, D), np.float32)


def layer_norm(x, gain, shift):  # (T, D), (D,), (D,) -> (T, D)
    x = x - x.mean(-1, keepdims=True)  # read, read and write
    variance = np.square(x).mean(-1, keepdims=True)  # read and write, read
    x = x / np.sqrt(variance + np.float32(eps))  # read and write
    return x * gain + shift  # read and write, twice


once = 2 * x.nbytes / bandwidth  # the time to read x once and write y once, which nothing can beat
whole = least(lambda: layer_norm(x, gain, shift))
print(f"{whole * 1e3:.0f} ms; to read x once and write y once would take {once * 1e3:.0f} ms")
assert whole > 1.5 * once

# %% [markdown]
# The remedy is not less arithmetic but fewer trips. Take *64 rows at a time*: they are read from memory once, the lines of
# the formula find them in the cache, and the small arrays in between use the same memory again and again. It is the same
# NumPy, in a loop.


# %%
y = np.empty_like(x)


def in_blocks(x, gain, shift, y, rows=64):
    for start in range(0, len(x), rows):
        y[start : start + rows] = layer_norm(x[start : start + rows], gain, shift)


blocked = least(lambda: in_blocks(x, gain, shift, y))
print(f"64 rows at a time: {blocked * 1e3:.0f} ms")
assert (y == layer_norm(x, gain, shift)).all()

# %% [markdown]
# ## 3. LayerNorm in machine code
#
# A compiler can go on: keep a *number* in a register until it is done with. **Numba** makes machine code from Python loops
# when they are first called. The library's CPU backend is written so
# ([`backends/numba/norm.py`](../tinyroberta/backends/numba/norm.py)).
#
# One thing is worth a look: the sum. A core adds 8 or 16 numbers at a time, if the order of the sum permits. Float sums
# depend on their order, so a careful compiler does not change it. We choose an order that suits the machine: 64 lanes,
# where number $j$ is added to lane $j \bmod 64$, and then the halves are added until one is left.


# %%
def compiled_layer_norm(x, gain, shift, y, eps):  # (T, D), (D,), (D,), (T, D); D is a multiple of 64
    lanes = np.empty(64, np.float32)
    row = np.empty(x.shape[1], np.float32)
    for t in range(x.shape[0]):
        mean = total(x[t], lanes) / np.float32(x.shape[1])
        for j in range(x.shape[1]):
            row[j] = x[t, j] - mean
        variance = total(row * row, lanes) / np.float32(x.shape[1])
        inverse = np.float32(1) / np.float32(math.sqrt(variance + eps))
        for j in range(x.shape[1]):
            y[t, j] = row[j] * inverse * gain[j] + shift[j]


def total(row, lanes):  # the order of sums in 64 lanes
    lanes[:] = 0
    for start in range(0, len(row), 64):
        part = row[start : start + 64]
        for i in range(64):
            lanes[i] += part[i]
    half = 32
    while half:
        for i in range(half):
            lanes[i] += lanes[i + half]
        half //= 2
    return lanes[0]


# %%
try:
    from numba import njit
except ImportError:
    njit = None
    print("Skipped: Numba is not installed (pip install numba), so the compiled version has no time below.")

times = {"NumPy, whole arrays": whole, "NumPy, 64 rows at a time": blocked}
if njit:
    total = njit(total)
    compiled_layer_norm = njit(compiled_layer_norm)
    start = time.perf_counter()
    compiled_layer_norm(x, gain, shift, y, np.float32(eps))
    print(f"the first call compiles: {time.perf_counter() - start:.1f} s")
    times["Numba"] = least(lambda: compiled_layer_norm(x, gain, shift, y, np.float32(eps)))

    defined = bitwise.layer_norm(x, gain, shift, np.float32(eps))
    print("equal to the library's definition, bit by bit:", np.array_equal(y, defined))
    assert (y == defined).all()
    assert times["Numba"] < whole

# %%
fig, ax = plt.subplots(figsize=(5.4, 2.5), layout="constrained")
bars = ax.barh(list(times), [1e3 * t for t in times.values()], color=[GREY, BLUE, ORANGE][: len(times)], height=0.6)
ax.bar_label(bars, [f"{1e3 * t:.1f} ms" for t in times.values()], padding=3)
ax.axvline(1e3 * once, color=INK, lw=1, ls="--")
ax.text(1e3 * once, 1.02, "copying x", transform=ax.get_xaxis_transform(), ha="center", fontsize=9)
ax.invert_yaxis()
ax.set(xlabel="milliseconds for 8192 rows", xlim=(0, 1.2e3 * max(times.values())))
ax.set_title("LayerNorm: fewer trips, less time", pad=16)
plt.show()

# %% [markdown]
# The arithmetic is the same in all of them. What changed is how often a number goes to memory and back, and how many calls
# it takes. This is called **fusing**: several steps in one trip. No LayerNorm can be faster than the dashed line, unless its
# input is still in the cache from the step before. That is the next thing to do: fuse the norm with its neighbours. The
# library's norms write their rows in the form that the next product reads.
#
# ## 4. LayerNorm on a GPU
#
# A GPU has thousands of slow lanes instead of a few fast ones. The library's kernels are files of CUDA C++. We only read
# them here. This is the heart of LayerNorm's:

# %%
kernels = Path(tinyroberta.__file__).parent / "backends" / "cupy" / "kernels"
lines = (kernels / "norm.cuh").read_text().splitlines()
first = next(i for i, line in enumerate(lines) if "norm_of(" in line) - 1
print("\n".join(lines[first : lines.index("}", first) + 1]))

lines = (kernels / "layer_norm.cu").read_text().splitlines()
first = next(i for i, line in enumerate(lines) if "layer_norm(" in line) - 2
print("\n" + "\n".join(lines[first : lines.index("}", first) + 1]))

# %% [markdown]
# Read it beside the loop above:
#
# | Numba, one core | CUDA |
# |---|---|
# | a loop over rows | one *warp* of 32 threads for each row, thousands at once: `row = blockIdx.x * 4 + threadIdx.y` |
# | 64 lanes of a sum | 32 threads, each adding its own share of the row; `V` numbers are loaded at a time |
# | halves are added until one is left | `warp_sum`: the same, between the registers of the threads |
# | the row waits in the cache | `held`: the row waits in *registers*, if it is short enough |
# | two passes: the mean, then the distance from it | the same two passes: they lose no digits where the mean is large |
#
# Other words for the same idea: each number goes to memory once.
#
# ## 5. The roofline
#
# Is every operation waiting for memory? Divide what an operation computes by what it must move at least: that is its
# **intensity**, in operations a byte. Its speed can then not be above
#
# $$\min(\text{peak}, \; \text{intensity} \times \text{bandwidth}).$$
#
# In a picture with logarithmic axes this is a slope and a flat roof ([Williams et al.
# 2009](https://doi.org/10.1145/1498765.1498785)). Let us put the model's operations under it, in the sizes of
# RoBERTa-base. Dense layers take a weight of 12 in turn, as the model does, so that it has to come from memory.

# %%
I, O = 768, 3072
weights = rng.standard_normal((12, O, I), np.float32) * np.float32(0.02)
bias = np.zeros(O, np.float32)
points = []  # name, operations, bytes, seconds, kind


def dense(T):
    rows, turn = rng.standard_normal((T, I), np.float32), iter(range(1 << 30))
    seconds = least(lambda: plain.linear(rows, weights[next(turn) % 12], bias), 0.5)
    points.append((f"dense, {T}", 2 * T * I * O, 4 * (O * I + T * (I + O)), seconds, "product"))


for count in (1, 8, 64, 512):
    dense(count)

S, heads = 128, 12
q, k, v = rng.standard_normal((3, S, D), np.float32)
one_text = Sequences(np.array([0, S], np.int32), np.array([0], np.int32), np.array([S], np.int32), False)
seconds = least(lambda: plain.attention(q, k, v, one_text, heads))
points.append(("attention, 128", 4 * S * S * D, 4 * 4 * S * D, seconds, "product"))
inner = rng.standard_normal((2048, O), np.float32)
points.append(("GELU", 40 * inner.size, 2 * inner.nbytes, least(lambda: plain.activation(inner, "gelu")), "each number"))
points.append(("LayerNorm, NumPy", 8 * x.size, 2 * x.nbytes, whole, "each number"))
if njit:
    points.append(("LayerNorm, Numba", 8 * x.size, 2 * x.nbytes, times["Numba"], "each number"))
peak, bandwidth = np.maximum((peak, bandwidth), ceilings())  # once more: another program may have slowed the first
for name, operations, moved, seconds, _ in points:
    roof = min(peak, operations / moved * bandwidth)
    print(f"{name:17} {operations / moved:7.1f} operations a byte, {operations / seconds / roof:5.0%} of its roof")

# %%
fig, ax = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
grid = np.logspace(-0.5, 3, 200)
ax.plot(grid, np.minimum(peak, grid * bandwidth) / 1e9, color=INK, lw=1.5)
for name, operations, moved, seconds, kind in points:
    color, marker = (BLUE, "o") if kind == "product" else (ORANGE, "s")
    at, speed = operations / moved, operations / seconds / 1e9
    ax.plot(at, speed, marker, color=color, ms=7)
    below, beside = (0, -13, "center"), (8, -5, "left")
    places = {"dense, 1": (-8, 3, "right"), "dense, 64": (-8, 0, "right"), "dense, 512": below, "attention, 128": below}
    dx, dy, side = places.get(name, beside if name in ("LayerNorm, Numba", "GELU") else (0, 12, "center"))
    ax.annotate(name, (at, speed), (dx, dy), textcoords="offset points", va="center", ha=side)
slowest = min(operations / seconds for _, operations, _, seconds, _ in points) / 1e9
ax.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="billion operations a second")
ax.set_title("Under the roofline: the slope is memory, the flat is the core")
ax.set(xlim=(0.1, 1000), ylim=(slowest / 2, 3 * peak / 1e9))
plt.show()

intensity = {name: operations / moved for name, operations, moved, *_ in points}
assert intensity["dense, 1"] < 1 < 50 < intensity["dense, 512"]

# %% [markdown]
# The same dense layer stands at both ends. With one token, each weight is read from memory for a single product and a sum.
# With 512 tokens, each weight that was read is used 512 times. That is why many texts at once are cheaper than one at a
# time, and why a weight in half the bytes helps *one short text* most.
#
# Far below the roof stands what makes many trips: LayerNorm in NumPy, and GELU, whose formula is dozens of NumPy calls. (A
# point above the line is no mistake: its numbers were still in a cache, or it suits the machine better than the product and
# the copy that drew the line. The operations of GELU and LayerNorm are counted roughly.)
#
# ## 6. Fewer bits: bfloat16
#
# A bfloat16 is the first half of a float32: the same range, but 8 bits of precision instead of 24. Half the bytes, and
# many CPUs and GPUs have units that multiply it faster. What does it lose?

# %%
numbers = np.linspace(1, 1.1, 2000, dtype=np.float32)
rounded = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
left = len(np.unique(rounded))

fig, ax = plt.subplots(figsize=(4.6, 3), layout="constrained")
ax.plot(numbers, numbers, color=GREY, lw=4, label="float32")
ax.plot(numbers, rounded, color=BLUE, lw=1.5, label="bfloat16")
ax.set(title=f"From 1 to 1.1, bfloat16 has {left} numbers", xlabel="number", ylabel="what is stored")
ax.legend(frameon=False)
plt.show()

numbers = np.geomspace(1e-3, 1e3, 100_000, dtype=np.float32)
rounded = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
worst = np.abs(rounded / numbers - 1).max()
print(f"largest relative error {worst:.5f}, and 1/256 is {1 / 256:.5f}")
assert worst < 2**-8


# %%
def error(found, exact):  # relative, of all numbers together
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


rows, weight = rng.standard_normal((64, I), np.float32), weights[0]  # (T, K), (O, K)
exact = rows.astype(np.float64) @ weight.astype(np.float64).T
short = [m.astype(ml_dtypes.bfloat16).astype(np.float32) for m in (rows, weight)]
errors = {"float32": error(rows @ weight.T, exact), "bfloat16": error(short[0] @ short[1].T, exact)}
for name, e in errors.items():
    print(f"{name:9} {e:.1e}")
assert errors["float32"] < 1e-6 < 1e-3 < errors["bfloat16"] < 4e-3

# %% [markdown]
# Two to three digits stay, of seven. For many uses that is enough. For a reference it is not.
#
# ## 7. An exact product
#
# Integers do not round. A sum of integers is the same in every order, as long as nothing overflows. And many CPUs and
# GPUs have fast units for 8-bit integers. Can we multiply float32 matrices with them?
#
# Yes: cut each number into **digits** of 8 bits, multiply digits, and put the results together ([Ozaki et al.
# 2012](https://doi.org/10.1007/s11075-011-9478-1)). Here is a row of numbers, cut into three digits. First the row is
# scaled so that its largest number is nearly $2^{23}$. Then each number is rounded to an integer, and the integer is
# written in base 256, with digits from -128 to 127. [`backends/bitwise.py`](../tinyroberta/backends/bitwise.py) is the
# definition.

# %%
row = rows[:1, :10]
digits, scales = bitwise.cut(row, 3)  # (3, 1, 10) int8, (1,)
whole_numbers = sum(digits[i].astype(np.int64) * 256 ** (2 - i) for i in range(3))[0]

fig, ax = plt.subplots(figsize=(5.8, 2.6), layout="constrained")
image = ax.imshow(digits[:, 0], cmap=SIGNS, vmin=-128, vmax=127, aspect="auto")
for (i, j), digit in np.ndenumerate(digits[:, 0]):
    ax.text(j, i, str(digit), ha="center", va="center", fontsize=9, color="white" if abs(int(digit)) > 80 else INK)
ax.set_xticks(range(10), [f"{number:.3f}" for number in row[0]], rotation=45)
ax.set_yticks(range(3), ["65536 times", "256 times", "1 times"])
ax.set_title("Ten numbers, three digits of 8 bits each")
fig.colorbar(image, label="digit")
plt.show()

n = whole_numbers[0]
print(f"{row[0, 0]:.6f} is cut to {digits[0, 0, 0]} x 65536 + {digits[1, 0, 0]} x 256 + {digits[2, 0, 0]} = {n}")
back = whole_numbers * (scales[0] / 256.0**2)
print(f"put together again: {back[0]:.6f}; largest error in the row {np.abs(back - row[0]).max():.1e}")
assert np.abs(back - row[0]).max() < 2**-22 * np.abs(row).max()

# %% [markdown]
# A product of two such numbers has nine products of digits. Those with the same weight stand on a diagonal and can be
# added up in one integer:

# %%
fig, ax = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
shades = {0: BLUE, 1: "#6b9bd1", 2: "#c3d8ef", 3: "#eef1f4", 4: "#eef1f4"}
for i in range(3):
    for j in range(3):
        ax.add_patch(plt.Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, color=shades[i + j]))
        color = "white" if i + j == 0 else INK if i + j < 3 else "#7b8794"
        ax.text(j, i, f"$a_{i} b_{j}$\n$256^{{{4 - i - j}}}$", ha="center", va="center", color=color)
ax.set(xlim=(-0.6, 2.6), ylim=(2.6, -0.6), xticks=range(3), yticks=range(3))
ax.set_xticklabels(["high", "middle", "low"])
ax.set_yticklabels(["high", "middle", "low"])
ax.set(xlabel="digit of the weight", ylabel="digit of the row")
ax.set_title("Six of nine products count; the grey three are too small")
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# First keep all nine, and check that nothing is lost: put together, they must be *equal* to the product of the integers.
# No tolerance, `==`.

# %%
a_digits, a_scales = bitwise.cut(rows, 3)  # (3, T, K) int8, (T,)
b_digits, b_scales = bitwise.cut(weight, 3)  # (3, O, K) int8, (O,)
a_whole, b_whole = (sum(d[i].astype(np.int64) * 256 ** (2 - i) for i in range(3)) for d in (a_digits, b_digits))


def diagonal(which, order=slice(None)):  # (T, O) int32: the products of digits whose numbers add up to `which`
    pairs = [(i, which - i) for i in range(3) if 0 <= which - i < 3]
    # in float64 these integers are exact, and BLAS is fast
    products = (a_digits[i][:, order].astype(float) @ b_digits[j][:, order].astype(float).T for i, j in pairs)
    return sum(product.astype(np.int32) for product in products)


diagonals = [diagonal(which) for which in range(5)]
together = sum(diagonals[which].astype(np.int64) * 256 ** (4 - which) for which in range(5))
assert (together == a_whole @ b_whole.T).all()
largest = max(np.abs(part).max() for part in diagonals)
print(f"equal in all {together.size:,} places; the largest sum is {largest:,}, of {2**31:,} that an int32 holds")
assert largest < 2**31

# %% [markdown]
# Can the sum of a longer row overflow? A product of digits is at most $128^2 = 2^{14}$, so three products fit for rows of
# up to 32,768 numbers. The library cuts longer ones into pieces.
#
# And how many diagonals are needed? Each one more is 256 times finer, until what is left is the rounding of the cut itself.

# %%
scale = a_scales[:, None].astype(np.float64) * b_scales
kept = [error(sum(diagonals[w] * 256.0**-w for w in range(count)) * scale, exact) for count in range(1, 6)]
library = error(bitwise.sliced_product(a_digits, a_scales, b_digits, b_scales, 3), exact)

fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ax.plot(range(1, 6), kept, color=BLUE, marker="o", lw=2, label="products of 8-bit digits")
ax.axhline(errors["float32"], color=INK, ls="--", lw=1, label="float32")
ax.axhline(errors["bfloat16"], color=ORANGE, ls="--", lw=1, label="bfloat16")
ax.set(yscale="log", xlabel="diagonals kept", ylabel="relative error", xticks=range(1, 6))
ax.set_title("Three diagonals: about as good as float32")
ax.legend(frameon=False)
plt.show()

print("kept", *[f"{count}: {e:.1e}" for count, e in enumerate(kept, 1)], sep="  ")
print(f"the library keeps three, rounded to float32: {library:.1e}")
assert kept[0] / kept[1] > 50
assert kept[2] < 1e-6
assert library < 1e-6
assert kept[1] < errors["bfloat16"] / 10

# %% [markdown]
# Six products instead of one: where a machine multiplies 8-bit integers more than six times as fast as float32, that is a
# win, and the accuracy is about float32's. Two diagonals, three products, are still far better than bfloat16.
#
# ## 8. The same bits in any batch
#
# Float sums depend on their order. Here is the same row of numbers, summed a thousand times in a shuffled order, as
# float32 products and as products of digits.

# %%
terms = rows[0] * weight[0]  # (K,), the products of one sum
orders = [rng.permutation(I) for _ in range(1000)]
in_float = {float(np.add.accumulate(terms[order])[-1]) for order in orders}
parts = a_digits[0, 0].astype(np.int32) * b_digits[0, 0]  # (K,), the same of the first digits
in_digits = {int(np.add.accumulate(parts[order])[-1]) for order in orders}
print(f"float32: {len(in_float)} different results; digits: {len(in_digits)}")
assert len(in_float) > 1 == len(in_digits)

# %% [markdown]
# A BLAS library chooses an order that suits the *shape*: one for a single row, another for a hundred. So the answer for
# your text can depend on what else is in the batch. Take one row, and put more and more others beside it:

# %%
batches = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
blas, sliced = [], []
alone_blas = rows[:1] @ weight.T
alone_sliced = bitwise.sliced_product(a_digits[:, :1], a_scales[:1], b_digits, b_scales, 3)
for batch in batches:
    blas.append(np.mean((rows[:batch] @ weight.T)[0] == alone_blas[0]))
    product = bitwise.sliced_product(a_digits[:, :batch], a_scales[:batch], b_digits, b_scales, 3)
    sliced.append(np.mean(product[0] == alone_sliced[0]))
    assert (product[0] == alone_sliced[0]).all()

fig, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
where = np.arange(len(batches))
ax.bar(where - 0.2, blas, 0.38, color=GREY, label="NumPy's BLAS, float32")
ax.bar(where + 0.2, sliced, 0.38, color=BLUE, label="products of digits")
ax.set_xticks(where, batches)
ax.set(title="One row in batches: who gives it the same bits?", xlabel="rows in the batch")
ax.set(ylabel="numbers with the same bits", ylim=(0, 1.35))
ax.set_yticks([0, 0.5, 1], ["0", "half", "all"])
ax.legend(frameon=False, loc="upper left", ncols=2)
plt.show()

print("BLAS    ", *[f"{share:.0%}" for share in blas])
print("digits  ", *[f"{share:.0%}" for share in sliced])

# %% [markdown]
# Dense layers are the hard part. All the rest of the model is sums *along a row*, and they need only one rule: the order
# depends on the row's length and on nothing else, like the 64 lanes of section 3. With both, a whole model gives the same
# bits for a text, alone or in any batch: `reproducible=True`.

# %%
demo = Path(tinyroberta.__file__).parent / "demo"
tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
encodings = tokenizer.encode_batch(["The door was open.", "It rained all night, and the river rose.", "He laughed."])
ids = np.array([e.ids for e in encodings])
mask = np.array([e.attention_mask for e in encodings])
n = mask[0].sum()
for reproducible in (False, True):
    model = tinyroberta.load(demo, backend="numpy", reproducible=reproducible)
    together = model(ids, attention_mask=mask).logits[0, :n]
    alone = model(ids[:1, :n]).logits[0]
    print(f"reproducible={reproducible!s:5} {np.mean(together == alone):7.2%} of the logits have the same bits")
    assert np.allclose(together, alone, atol=1e-3)
assert (together == alone).all()  # of the last, reproducible=True

# %% [markdown]
# ## 9. Try it
#
# **1. How many rows?** `in_blocks` takes 64 rows at a time. What happens with 1, with 512, with all 8192? Say why before you
# measure.
#
# <details><summary>Answer</summary>
#
# With one row, the NumPy calls themselves cost more than the arithmetic. With thousands, a block no longer fits into a cache
# near the core, and all is as with the whole array. The best number lies between; where, depends on your machine.
#
# ```python
# for count in (1, 8, 64, 512, T):
#     seconds = least(lambda: in_blocks(x, gain, shift, y, count))
#     print(f"{count:5} rows, {count * D * 4 / 1024:7.0f} KiB: {seconds * 1e3:.0f} ms")
# ```
# </details>

# %% [markdown]
# **2. A lost one.** Find three float32 numbers whose sum depends on the order so much that it is 0 or 1.
#
# <details><summary>Answer</summary>
#
# A large number, its negative, and 1. Between $2^{26}$ and $2^{27}$ float32's steps are 8 wide, so the 1 is lost as soon as
# it is added to a large one.
#
# ```python
# large, one = np.float32(1e8), np.float32(1)
# print((large + one) - large, (large - large) + one)
# assert (large + one) - large == 0
# assert (large - large) + one == 1
# ```
# </details>

# %% [markdown]
# **3. An outlier.** One number of a row is a thousand times the rest. What does that do to the digits of the others, and
# to the error of the product?
#
# <details><summary>Answer</summary>
#
# The row is scaled by its largest number, so the others use only the lower digits: their first digit is 0. Their error,
# measured against themselves, grows a thousand times. (The library gives a row of this kind one diagonal more.)
#
# ```python
# spiky = rows[:1].copy()
# spiky[0, 5] = 1000 * np.abs(spiky).max()
# few, few_scales = bitwise.cut(spiky, 3)
# others = np.arange(I) != 5
# print("first digits of the others:", np.unique(few[0, 0, others]))
# assert not few[0, 0, others].any()
# back = sum(few[i, 0] * 256.0 ** (2 - i) for i in range(3)) * (float(few_scales[0]) / 256**2)
# print(f"error of the others {error(back[others], spiky[0, others]):.1e}")
# assert 1e-6 < error(back[others], spiky[0, others]) < 1e-3
# ```
# </details>

# %% [markdown]
# ## Where to read next
#
# - [When numbers differ](06_when_numbers_differ.ipynb): what to do when a port of the model gives other numbers.
# - [`tinyroberta/backends/bitwise.py`](../tinyroberta/backends/bitwise.py): every order of rounding of the whole model.
# - [`tinyroberta/backends/numba/`](../tinyroberta/backends/numba/): the same operations compiled, on the units of a CPU.
# - [`tinyroberta/backends/cupy/kernels/`](../tinyroberta/backends/cupy/kernels/): the CUDA kernels.
# - `python -m benchmarks.ops`: each operation beside the ceilings of your machine.
#
# Papers: [Roofline](https://doi.org/10.1145/1498765.1498785), [Error-free transformations of matrix
# multiplication](https://doi.org/10.1007/s11075-011-9478-1).

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
# # Norm and add
#
# Nearly all models of the RoBERTa family are made of the same parts. What tells them apart is where one of the parts
# stands: the LayerNorm. This notebook shows what its place does to the vectors that flow through a model.
#
# Three things are put on the table: a stack of random layers, which has learned nothing and so shows the bare
# mechanics; the small pre-norm model that comes with this library; and Sapiens, a post-norm RoBERTa that reads
# antibodies.
#
# You need about a quarter of an hour. It helps to have read [the forward pass by hand](01_forward_by_hand.ipynb).
#
# Shapes are written in comments: **S** tokens, **D** the width of a vector, **V** words. A state is one row of D
# numbers for each token.

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
import tempfile
from contextlib import suppress
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from tokenizers import Tokenizer

import tinyroberta

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#d9782d", "#9aa5b1"
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#a9c6e6", BLUE, "#12355b"])
plt.rc("figure", dpi=100)
plt.rc("font", size=9)
plt.rc("text", color=INK)
plt.rc("axes", titlesize=11, titlelocation="left", edgecolor=GREY, labelcolor=INK)
plt.rc("axes.spines", top=False, right=False)

# %% [markdown]
# ## 1. Two places for a norm
#
# A layer has two sublayers $f$: attention, then feed-forward. Each one adds something to the *residual stream* $x$.
# There are two habits of where to norm:
#
# $$\textbf{pre-norm}\quad x \leftarrow x + f(\mathrm{LN}(x)) \qquad\qquad
# \textbf{post-norm}\quad x \leftarrow \mathrm{LN}(x + f(x))$$
#
# The first Transformer, BERT and RoBERTa are post-norm. RoBERTa-PreLayerNorm and XLM-RoBERTa-XL are pre-norm. In code,
# each takes two lines. Both functions also return what was added, because we want to look at it.


# %%
def pre_norm(x, f, norm):  # (S, D) -> what is added, the new stream
    added = f(norm(x))
    return added, x + added


def post_norm(x, f, norm):  # (S, D) -> what is added, the new stream
    added = f(x)
    return added, norm(x + added)


# %% [markdown]
# The norm itself takes each vector by itself, moves its mean to 0 and divides by its standard deviation. Then a learned
# gain $g$ and bias $b$ follow, one number per channel.
#
# $$\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} \odot g + b$$
#
# We measure vectors by their **size**, the root of the mean square of their numbers. It is the length divided by
# $\sqrt{D}$, so that models of different widths can stand in one picture.
#
# $$\mathrm{size}(x) = \sqrt{\frac{1}{D}\sum_k x_k^2} = \frac{\lVert x \rVert}{\sqrt{D}}$$
#
# With $g = 1$ and $b = 0$, whatever goes in comes out with size 1. A norm *forgets* the size of its input.


# %%
def layer_norm(x, weight=1.0, bias=0.0, eps=1e-5):  # (S, D) -> (S, D)
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def size(x):  # (..., D) -> (...)
    return np.sqrt(np.square(x).mean(-1))


rng = np.random.default_rng(0)
x = rng.standard_normal((1, 128))
for times in (1, 10, 1000):
    before, after = size(times * x)[0], size(layer_norm(times * x))[0]
    print(f"size {before:8.2f} -> {after:.4f}")
    assert abs(after - 1) < 1e-4

# %% [markdown]
# The two sublayers are those of notebook 01, in fewer lines.

# %%
erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def linear(x, weight, bias):  # (S, I), (O, I), (O,) -> (S, O)
    return x @ weight.T + bias


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def self_attention(h, heads, query, key, value, dense):  # (S, D) -> (S, D)
    def split(x):  # (S, D) -> (heads, S, d)
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    q, k, v = (split(linear(h, **part)) for part in (query, key, value))
    p = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
    return linear((p @ v).transpose(1, 0, 2).reshape(h.shape), **dense)


def feed_forward(h, wide, narrow):  # (S, D) -> (S, I) -> (S, D)
    return linear(gelu(linear(h, **wide)), **narrow)


# %% [markdown]
# Now one walk through all layers that keeps the stream after every sublayer. The place of the norm is an argument. The
# checkpoints keep a norm's weights where it stands, under `attention` or `attention.output`, so we look in both.


# %%
def sublayers(layer, heads):  # two pairs of f and norm
    mix, wide, narrow = layer["attention"], layer["intermediate"], layer["output"]
    norm = mix.get("LayerNorm") or mix["output"]["LayerNorm"]
    attend = {**mix["self"], "dense": mix["output"]["dense"]}
    yield lambda h: self_attention(h, heads, **attend), lambda x: layer_norm(x, **norm)
    other = wide.get("LayerNorm") or narrow["LayerNorm"]
    yield lambda h: feed_forward(h, wide["dense"], narrow["dense"]), lambda x: layer_norm(x, **other)


def walk(x, layers, heads, place):  # (S, D) -> (2 N + 1, S, D), (2 N, S, D)
    stream, additions = [x], []
    for layer in layers.values():
        for f, norm in sublayers(layer, heads):
            added, x = place(x, f, norm)
            stream.append(x)
            additions.append(added)
    return np.array(stream), np.array(additions)


# %% [markdown]
# ## 2. Forty-eight random layers
#
# Training can hide what the architecture does. So we begin with layers that nobody has trained: random matrices, scaled
# so that each keeps the size of a vector about the same, and norms with $g = 1$, $b = 0$. **The same layers** are run
# with both placements, from the same 16 random vectors. The state after layer 2 is what a model of 2 layers would give,
# the state after layer 48 what one of 48 layers would.


# %%
def tree(tensors):  # a nested dict: a dot in a name is one step down
    root = {}
    for name, array in tensors.items():
        *path, leaf = name.split(".")
        branch = root
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = array.astype(np.float64)
    return root


D, N, heads = 128, 48, 4
config = tinyroberta.RobertaPreLayerNormConfig(
    vocab_size=8,
    hidden_size=D,
    num_hidden_layers=N,
    num_attention_heads=heads,
    intermediate_size=4 * D,
    initializer_range=1 / math.sqrt(D),  # a sum of D terms of this size has size 1 again
)
fresh = tinyroberta.RobertaPreLayerNormModel(config, seed=0, backend="numpy")
layers = tree(fresh.tensors)["encoder"]["layer"]
first = layer_norm(rng.standard_normal((16, D)))  # (S, D), of size 1
pre, pre_added = walk(first, layers, heads, pre_norm)
post, post_added = walk(first, layers, heads, post_norm)
print(pre.shape, "the stream before the first sublayer and after each;", pre_added.shape, "what each added")

# %% [markdown]
# How large should the pre-norm stream become? Each sublayer reads a normed vector, so what it adds has a size of its
# own that does not depend on $x$. Directions of random additions have nothing to do with one another: in 128 dimensions
# they stand nearly at right angles, and then squares add up, as in Pythagoras' theorem. With $a_l$ for what sublayer
# $l$ adds,
#
# $$\mathrm{size}(x_L)^2 \approx \mathrm{size}(x_0)^2 + \sum_{l \le L} \mathrm{size}(a_l)^2,$$
#
# so the size grows like the *square root* of the depth. The dashed line is this formula.

# %%
depth = np.arange(N + 1)
squares = np.square(pre_added).mean((1, 2))  # (2 N,)
expected = np.sqrt(1 + np.append(0, squares.cumsum()))[::2]  # (N + 1,)
grown, held = size(pre[::2]).mean(-1), size(post[::2]).mean(-1)  # (N + 1,), after whole layers

fig, ax = plt.subplots(figsize=(6.2, 3.3), layout="constrained")
ax.plot(depth, grown, color=BLUE, lw=2, label="pre-norm")
ax.plot(depth, expected, color=INK, lw=1, ls="--", label="root of the summed squares")
ax.plot(depth, held, color=ORANGE, lw=2, label="post-norm")
ax.set(title="Random layers: only the pre-norm stream grows", xlabel="layers")
ax.set(ylabel="size of a vector", ylim=(0, None))
ax.legend(frameon=False)
plt.show()

assert np.abs(grown / expected - 1).max() < 0.1
assert np.abs(held - 1).max() < 1e-4

# %% [markdown]
# The same growth seen from the sublayers: each adds about as much as the one before, but to an ever longer vector. Late
# layers of a deep pre-norm model can only nudge. In post-norm, the last layer has the same say as the first.

# %%
print("what the feed-forward adds, as a share of the stream")
for name, stream, added in [("pre-norm", pre, pre_added), ("post-norm", post, post_added)]:
    share = (size(added) / size(stream[:-1])).mean(-1)[1::2]  # (N,), of the feed-forwards
    print(f"{name:9}", ", ".join(f"{share[i - 1]:.2f} in layer {i}" for i in (2, 12, 48)))
    assert (share[-1] < share[1] / 3) == (name == "pre-norm")

# %% [markdown]
# So why not always post-norm? Look at what happens to the *first* vector, the embedding. In pre-norm it is still there,
# untouched, one summand of many. In post-norm every norm divides the whole sum, the embedding included:
#
# $$x_L = \frac{x_0}{\sigma_1 \sigma_2 \cdots \sigma_L} + \dots$$
#
# The picture shows the size of the summand that comes straight from $x_0$, as a share of the state. The axis is
# logarithmic: a straight line there is a constant factor for every layer.

# %%
sums = post[:-1] + post_added  # (2 N, S, D), what the norms of the post-norm model divide
divided = np.cumprod(1 / sums.std(-1), axis=0).mean(-1)  # (2 N,)
straight = {"pre-norm": 1 / grown, "post-norm": np.append(1, divided)[::2]}

fig, ax = plt.subplots(figsize=(6.2, 3.3), layout="constrained")
for (name, left), color in zip(straight.items(), (BLUE, ORANGE), strict=True):
    ax.plot(depth, left, color=color, lw=2, label=name)
ax.set(title="What is left of the first vector", xlabel="layers", ylabel="share of the state", yscale="log")
ax.legend(frameon=False)
plt.show()

for name, left in straight.items():
    print(f"{name:9} after {N} layers: {left[-1]:.1e}")
assert straight["pre-norm"][-1] > 0.05
assert straight["post-norm"][-1] < 1e-6

# %% [markdown]
# A gradient that flows back along the stream is divided by the same $\sigma$s. It is among the reasons why deep
# post-norm models are hard to train from scratch without a careful warm-up, and why the norm moved ([Xiong et al.
# 2020](https://arxiv.org/abs/2002.04745)). A trained model is not at the mercy of this: it can learn small additions.
# We shall see that Sapiens did.

# %% [markdown]
# ## 3. The price: a final norm
#
# In a pre-norm model every sublayer reads the stream through a norm, and never learns how long it is. The head at the
# top is one more reader. If it read the bare stream, what would it see?
#
# Take the plainest head, one matrix: $z = x E^\top$. If $x$ is ten times longer, so is $z$, and the softmax of ten
# times larger logits is far more sure of itself, for no reason at all. Here is how sure: the **entropy** $-\sum_i p_i
# \log_2 p_i$ of the answer. It is 0 bits when all is on one word, and $\log_2 V$ bits when all words are equally
# likely.


# %%
def entropy(logits):  # (..., V) -> (...), in bits
    p = softmax(logits)
    return -(p * np.log2(p + 1e-300)).sum(-1)


E = rng.standard_normal((1000, D)) / math.sqrt(D)  # (V, D)
shown = {
    "pre-norm, bare stream": (pre[::2], BLUE, "-"),
    "pre-norm, with a final norm": (layer_norm(pre[::2]), BLUE, "--"),
    "post-norm": (post[::2], ORANGE, "-"),
}
bits = {name: entropy(states @ E.T).mean(-1) for name, (states, _, _) in shown.items()}

fig, ax = plt.subplots(figsize=(6.2, 3.3), layout="constrained")
for name, (_, color, style) in shown.items():
    ax.plot(depth, bits[name], color=color, ls=style, lw=2, label=name)
title = "A head on the bare stream is sure of itself, about nothing"
ax.set(title=title, xlabel="layers", ylabel="entropy of the answer (bits)", ylim=(0, math.log2(len(E))))
ax.legend(frameon=False, loc="center right")
plt.show()

assert bits["pre-norm, bare stream"][-1] < 4
assert min(bits["pre-norm, with a final norm"].min(), bits["post-norm"].min()) > 9

# %% [markdown]
# These layers and this head know nothing, so every answer should stay near $\log_2 1000 \approx 10$ bits, which says
# "I do not know". With a final norm every answer does, at every depth: the dashed line stays above 9 bits. On the bare
# stream, depth alone turns ignorance into certainty.
#
# A post-norm model needs no final norm, because it has one: the last thing its last layer does is to norm.

# %% [markdown]
# ## 4. Two trained models
#
# The pre-norm one comes with the library. It reads a sentence with a hole.

# %%
demo = Path(tinyroberta.__file__).parent / "demo"
tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
text = "He opened the <mask> and walked into the room."
demo_ids = np.array(tokenizer.encode(text).ids)  # (S,)
demo_hole = demo_ids == tokenizer.token_to_id("<mask>")  # (S,)
demo_model = tinyroberta.load(demo, backend="numpy", dtype="float64")
print(type(demo_model).__name__, f"{demo_model.num_parameters:,} numbers for", len(demo_ids), "tokens")

# %% [markdown]
# The post-norm one is **Sapiens** ([Prihoda et al. 2022](https://doi.org/10.1080/19420862.2021.2020203)), trained on
# the sequences of antibodies. Its words are the 20 amino acids, one letter each, and filling a hole in a sequence is
# the same task as filling one in a sentence. The weights are public (MIT, © 2022 Merck Sharp & Dohme Corp.) and come in
# a Python package, which is only unpacked and not installed. The cell needs the network once, unless the variable
# `TINYROBERTA_SAPIENS` names a folder that [`tools/fetch_sapiens.py`](../tools/fetch_sapiens.py) has filled. Without
# Sapiens, the notebook goes on with one model.


# %%
def sapiens_folder():
    if named := os.environ.get("TINYROBERTA_SAPIENS"):
        return Path(named)
    folder = Path(tempfile.gettempdir()) / "tinyroberta-sapiens"
    places = [Path("..", "tools"), Path(tinyroberta.__file__).parents[1] / "tools"]
    tools = [place / "fetch_sapiens.py" for place in places if (place / "fetch_sapiens.py").is_file()]
    if tools and not (folder / "dict.txt").is_file():
        patience = os.environ | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "10"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([sys.executable, tools[0], folder], env=patience, timeout=45, **quiet)
    return folder


folder = sapiens_folder()
have_sapiens = all((folder / name).is_file() for name in ("checkpoint_vh.pt", "dict.txt"))
missing = "Skipped: Sapiens cannot be had here; the pictures show one model."
print("Sapiens is here." if have_sapiens else missing)

# %% [markdown]
# Its file is a checkpoint of fairseq, the framework that RoBERTa was made with. `tinyroberta.load` reads it without
# fairseq or PyTorch, and sees from the names of its norms that it is post-norm.
#
# Is it the real model? Its authors have published what it answers for one sequence with three holes (`*`). Here are the
# first two of them.

# %%
sequence = "**QLV*SGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFN"
sequence += "EKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS"
if have_sapiens:
    letters = [line.split()[0] for line in (folder / "dict.txt").read_text().splitlines()]
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    spelled = ["<s>", *sequence.replace("*", "#"), "</s>"]
    sapiens_ids = np.array([words.index("<mask>" if word == "#" else word) for word in spelled])
    sapiens_model = tinyroberta.load(folder / "checkpoint_vh.pt", backend="numpy", dtype="float64")
    count = f"{sapiens_model.num_parameters:,} numbers"
    print(type(sapiens_model).__name__, count, "for", len(sapiens_ids), "tokens")

    answers = softmax(sapiens_model(sapiens_ids[None]).logits[0])  # (S, V)
    for place, letter, published in [(0, "Q", 0.901278), (1, "V", 0.845837)]:
        found = answers[place + 1, words.index(letter)]  # <s> is before the first letter
        print(f"place {place}: {letter} {found:.7f}, published {published}")
        assert abs(found - published) < 1e-6

# %% [markdown]
# The walk of section 1, with the weights of both. First the check that it *is* their forward pass: our logits against
# the library's.


# %%
def embed(ids, word_embeddings, position_embeddings, token_type_embeddings, LayerNorm):  # (S,) -> (S, D)
    positions = np.arange(len(ids)) + 2  # the first place is row 2 of the table
    x = word_embeddings["weight"][ids] + position_embeddings["weight"][positions]
    return layer_norm(x + token_type_embeddings["weight"][0], **LayerNorm)


def lm_head(x, dense, layer_norm, decoder, norm=layer_norm):  # (S, D) -> (S, V)
    return linear(norm(gelu(linear(x, **dense)), **layer_norm), **decoder)


def study(model, ids, holes, place):
    weights = tree(model.tensors)
    x = embed(ids, **weights["embeddings"])
    stream, added = walk(x, weights["encoder"]["layer"], model.config.num_attention_heads, place)
    last = layer_norm(stream[-1], **weights["LayerNorm"]) if place is pre_norm else stream[-1]
    assert np.allclose(lm_head(last, **weights["lm_head"]), model(ids[None]).logits[0], atol=1e-9)
    return SimpleNamespace(weights=weights, stream=stream, added=added, last=last, holes=holes)


embedded = study(demo_model, demo_ids, demo_hole, pre_norm)
models = {"The embedded model, pre-norm": embedded}
if have_sapiens:
    sapiens = study(sapiens_model, sapiens_ids, sapiens_ids == words.index("<mask>"), post_norm)
    models["Sapiens, post-norm"] = sapiens
print(*models, sep="\n")

# %% [markdown]
# ## 5. The stream through depth
#
# Each thin line is one token, on its way from the embedding through all sublayers. The orange lines are the holes. Mind
# the scales: each panel has its own.


# %%
def panels(height, sharey=True):
    shape = {"figsize": (7.6, height), "layout": "constrained", "sharey": sharey, "squeeze": False}
    axes = plt.subplots(1, len(models), **shape)[1][0]
    for ax, (title, found) in zip(axes, models.items(), strict=True):
        ax.set_title(title)
        yield ax, found
    for ax in axes:  # when all is drawn
        ax.set_ylim(0, None)
    plt.show()


def name_steps(ax, steps):  # embeddings, then two sublayers a layer
    names = [f"{kind} {i}" for i in range(steps // 2) for kind in ("attention", "feed-forward")]
    ax.set_xticks(range(steps), ["embeddings", *names], rotation=90)


# %%
for ax, found in panels(3.7, sharey=False):
    sizes = size(found.stream)  # (2 N + 1, S)
    ax.plot(sizes[:, ~found.holes], color=GREY, lw=0.6, alpha=0.7)
    ax.plot(sizes[:, found.holes], color=ORANGE, lw=1.5)
    ax.plot(sizes.mean(-1), color=BLUE, lw=2, marker="o", ms=4)
    handles = [ax.lines[i] for i in (-1, -2, 0)]
    ax.legend(handles, ["mean", "<mask>", "the other tokens"], frameon=False)
    ax.set(ylabel="size of a vector" if found is embedded else None)
    name_steps(ax, len(sizes))

for title, found in models.items():
    start, *_, end = size(found.stream).mean(-1)
    print(f"{title}: from {start:.2f} to {end:.2f}, {end / start:.1f} times")

# %% [markdown]
# In the pre-norm model, the stream is exactly the embedding plus everything that was added, and nothing takes size away
# unless a sublayer learns to subtract. In the post-norm model, each state *is* the output of a norm. It is not exactly
# of size 1 only because the gain and the bias are learned: take them away again, and each token has size 1. The next
# cell checks both.

# %%
assert np.allclose(embedded.stream[-1], embedded.stream[0] + embedded.added.sum(0))

if have_sapiens:
    top_norm = sapiens.weights["encoder"]["layer"]["3"]["output"]["LayerNorm"]
    bare = (sapiens.stream[-1] - top_norm["bias"]) / top_norm["weight"]
    assert np.allclose(size(bare), 1, atol=1e-4)
    print("Sapiens' last state, less gain and bias: size", size(bare).round(4)[:5], "...")
    means = size(sapiens.stream).mean(-1)
    assert means.max() < 2 * means.min()

# %% [markdown]
# ## 6. Who adds how much?
#
# For each sublayer: the size of what it adds, as a share of the stream it adds to. At 1, the addition is as long as
# everything that came before it.

# %%
for ax, found in panels(3):
    share = (size(found.added) / size(found.stream[:-1])).mean(-1)  # (2 N,)
    where = np.arange(len(share) // 2)
    ax.bar(where - 0.19, share[::2], 0.36, color=ORANGE, label="attention")
    ax.bar(where + 0.19, share[1::2], 0.36, color=BLUE, label="feed-forward")
    ax.set_xticks(where, [f"layer {i}" for i in where])
    ax.set(ylabel="added, as a share of the stream" if found is embedded else None)
    ax.legend(frameon=False)

# %% [markdown]
# On the left, two things are in one number: what the sublayers add, and the growing stream they add it to. Sapiens
# shows what section 2 promised: it has learned *small* additions. Every one is below half of the stream, where a random
# feed-forward added more than all of it. So its embeddings survive the eight divisions:

# %%
if have_sapiens:
    share = (size(sapiens.added) / size(sapiens.stream[:-1])).mean(-1)
    random_share = (size(post_added) / size(post[:-1])).mean(-1)[1::2]
    print(f"largest addition in Sapiens {share.max():.2f}")
    print(f"smallest of a random feed-forward {random_share.min():.2f}")
    assert share.max() < 0.5 < 1 < random_share.min()

    def cosine(a, b):  # (S, D), (S, D) -> (S,)
        return (a * b).mean(-1) / size(a) / size(b)

    kept, lost = cosine(sapiens.stream[-1], sapiens.stream[0]), cosine(post[8], post[0])
    print(f"cosine of the state after 8 sublayers and the embedding: Sapiens {kept.mean():.2f}")
    print(f"the same in the random post-norm layers {lost.mean():.2f}")
    assert kept.mean() > 0.5 > 0.2 > abs(lost.mean())

# %% [markdown]
# ## 7. Large channels
#
# The size is a mean over $D$ channels. Do they share it evenly? Take the size of each channel, over all tokens, and
# divide it by the size of the whole state. The dark band holds the middle nine tenths of the channels, the light one
# all of them. The three that reach highest, at any step, have a line and their number.

# %%
for ax, found in panels(3.7):
    channels = np.sqrt(np.square(found.stream).mean(1))  # (2 N + 1, D)
    channels = channels / size(channels)[:, None]
    steps = range(len(channels))
    for low, high, alpha in [(0, 100, 0.3), (5, 95, 0.6)]:
        ax.fill_between(steps, *np.percentile(channels, [low, high], axis=-1), color=GREY, alpha=alpha, lw=0)
    for channel in np.argsort(channels.max(0))[-3:]:
        ax.plot(channels[:, channel], color=ORANGE, lw=1.5)
        peak = channels[:, channel].argmax()
        height = channels[peak, channel] + 0.05
        ax.text(peak, height, str(channel), color=ORANGE, ha="center", va="bottom")
    ax.set(ylabel="size, as a share of the state's" if found is embedded else None)
    name_steps(ax, len(channels))

# %% [markdown]
# A norm divides a *vector* by one number. It does not make the channels equal: a channel that stands out before still
# stands out after, unless its gain is small. In Sapiens one and the same channel is among the three largest at nearly
# every step. In large models this goes much further: a handful of channels are many times larger than the rest, and the
# model breaks without them ([Kovaleva et al. 2021](https://arxiv.org/abs/2105.06990)). It is one reason why quantizing
# activations to eight bits needs care ([Dettmers et al. 2022](https://arxiv.org/abs/2208.07339)).

# %%
if have_sapiens:
    ranked = np.square(sapiens.stream).mean(1).argsort(-1)[:, -3:]  # (2 N + 1, 3)
    counts = np.bincount(ranked.ravel())
    print(f"channel {counts.argmax()} is among the three largest in {counts.max()} of {len(ranked)} states")
    assert counts.max() >= len(ranked) - 1

# %% [markdown]
# ## 8. The final norm of a trained model
#
# Now take the final norm from the embedded model and ask again. One thing must be known first: RoBERTa's head for words
# is not one matrix. It has **a norm of its own**,
#
# $$z = \mathrm{LN}(\mathrm{gelu}(x W^\top + b))\, E^\top + b_E,$$
#
# which also forgets sizes. To see what each norm does, we switch both. The head without its own norm divides by a
# constant instead: the standard deviation that its vectors have on average when the model is left as it was.


# %%
def constant_norm(h, weight, bias):  # a norm that does not look how large this h is
    return (h - h.mean(-1, keepdims=True)) / typical * weight + bias


head = embedded.weights["lm_head"]
typical = gelu(linear(embedded.last, **head["dense"])).std(-1).mean()
hole = embedded.holes.argmax()
cases = {
    "final norm,\nnorm in the head": lm_head(embedded.last, **head),
    "bare stream,\nnorm in the head": lm_head(embedded.stream[-1], **head),
    "final norm,\nconstant in the head": lm_head(embedded.last, **head, norm=constant_norm),
    "bare stream,\nconstant in the head": lm_head(embedded.stream[-1], **head, norm=constant_norm),
}
print(f"{'':38} logits (std)   entropy (bits)   entropy in the hole")
for name, logits in cases.items():
    scale, bits = logits.std(-1).mean(), entropy(logits)
    name = name.replace("\n", " ")
    print(f"{name:38} {scale:8.2f} {bits.mean():14.2f} {bits[hole]:17.2f}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ranked = [np.argsort(-logits[hole])[:5] for logits in cases.values()]
shown = [softmax(logits[hole])[best] for logits, best in zip(cases.values(), ranked, strict=True)]
image = ax.imshow(shown, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
for (i, j), p in np.ndenumerate(shown):
    word = tokenizer.decode([ranked[i][j]]).strip()
    color = "white" if p > 0.4 else INK
    ax.text(j, i, f"{word}\n{p:.1%}", ha="center", va="center", color=color)
ax.set_xticks(range(5), ["best", "2nd", "3rd", "4th", "5th"])
ax.set_yticks(range(len(cases)), list(cases))
ax.set(title="The same hole, with and without norms")
fig.colorbar(image, label="probability")
plt.show()

# %% [markdown]
# Compare the first row with the others. As long as *some* norm stands between the stream and the words, the size of the
# stream is forgotten. In the last row none does: the logits are scaled up with the stream, and the softmax puts more on
# its first choice, here and on average over all places, right or wrong.
#
# The first two rows show what the final norm is worth to a head that has a norm itself. Other heads have none: those
# for classification, spans and tags would read the bare stream as it is. And the final norm does one thing more: its
# gain and bias are learned, channel by channel, so that every head finds the channels in the balance it was trained
# with.

# %%
bare, normed = (size(x).mean() for x in (embedded.stream[-1], embedded.last))
spread = [logits.std(-1).mean() for logits in cases.values()]
print(f"the bare stream is {bare / normed:.1f} times as large as the normed one,")
print(f"the logits {spread[1] / spread[0]:.1f} times where the head has a norm,")
print(f"and {spread[3] / spread[2]:.1f} times where it has none")

# %% [markdown]
# ## 9. In one table
#
# | | pre-norm | post-norm |
# |---|---|---|
# | one sublayer | $x + f(\mathrm{LN}(x))$ | $\mathrm{LN}(x + f(x))$ |
# | size of the stream | free; grows like the root of the depth in random layers | set anew by every norm |
# | the embedding, straight to the top | stays as it is | divided at every step |
# | what a late layer can add | less and less of the whole | as much as an early one |
# | before the head | a final norm | nothing more |
# | in `tinyroberta` | `pre_norm_block` in [`forward.py`](../tinyroberta/forward.py) | `post_norm_block`, next to it |
#
# ## 10. Try it
#
# **1. Ten times the stream.** Multiply the last state of the embedded model by 10, before the final norm. What changes
# in the answer?
#
# <details><summary>Answer</summary>
#
# Nothing, but for $\varepsilon$: a norm forgets the size.
#
# ```python
# final = embedded.weights["LayerNorm"]
# louder = lm_head(layer_norm(10 * embedded.stream[-1], **final), **head)
# assert np.allclose(louder, lm_head(embedded.last, **head), atol=1e-2)
# ```
# </details>

# %% [markdown]
# **2. A calm start.** How small must the additions be made so that the pre-norm stream of $N$ random layers has about
# the same size at every depth?
#
# <details><summary>Answer</summary>
#
# There are $2N$ additions whose squares sum up. Divide each by $\sqrt{2N}$, and the sum of the squares no longer
# depends on $N$. GPT-2 starts its training like this.
#
# ```python
# def calm(x, f, norm):
#     added = f(norm(x)) / math.sqrt(2 * N)
#     return added, x + added
#
# stream, _ = walk(first, layers, heads, calm)
# print(size(stream[::2]).mean(-1)[[2, 12, 48]].round(2))
# assert size(stream[-1]).mean() < 2
# ```
# </details>

# %% [markdown]
# **3. The wrong place.** Run the weights of the embedded model as if it were post-norm. No error is raised: all the
# shapes fit. What does it answer?
#
# <details><summary>Answer</summary>
#
# Something else. A model is trained for one placement and cannot be run with the other. That is why a loader must find
# out which one a checkpoint has.
#
# ```python
# its_layers, its_heads = embedded.weights["encoder"]["layer"], demo_model.config.num_attention_heads
# swapped, _ = walk(embedded.stream[0], its_layers, its_heads, post_norm)
# for x in (embedded.last, swapped[-1]):
#     p = softmax(lm_head(x, **head)[hole])
#     print([f"{tokenizer.decode([i])} {p[i]:.1%}" for i in np.argsort(-p)[:5]])
# ```
# </details>

# %% [markdown]
# ## Where to read next
#
# - [Attention in pictures](03_attention_in_pictures.ipynb): what the other half of a layer does.
# - [`tinyroberta/forward.py`](../tinyroberta/forward.py): `pre_norm_block` and `post_norm_block`, and `encode`, which picks one.
# - [`tinyroberta/weights/fairseq.py`](../tinyroberta/weights/fairseq.py): how a checkpoint shows where its norms are.
#
# Papers: [Layer normalization](https://arxiv.org/abs/1607.06450), [On layer normalization in the Transformer
# architecture](https://arxiv.org/abs/2002.04745).

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
# # The forward pass by hand
#
# From a sentence with a hole in it to the word that fills the hole, with nothing but NumPy arrays.
# Each step stands beside its formula. At the end, the numbers are equal to the library's.
#
# You need Python, matrix products and about fifteen minutes. You need no deep-learning framework.
#
# **What the model is, in five lines**
#
# 1. A text becomes a row of tokens, and each token becomes a vector of $D$ numbers.
# 2. The vectors go through $N$ layers. In each layer, the tokens first read each other (*attention*),
#    then each token works alone (*feed-forward*).
# 3. A sublayer never replaces a vector. It only *adds* to it. The vector that flows through is called the *residual
#    stream*.
# 4. At the top, each vector is compared with every word of the vocabulary. The best match is the answer.
# 5. It was trained on one task: some words are hidden behind `<mask>`, and the model has to find them.
#
# Shapes are written in comments: **S** tokens, **D** the width of a vector, **H** heads of width **d**, **V** words,
# **I** the width inside the feed-forward.

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
import json
import math

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
# ## 0. Where the norm stands
#
# The name of the model says where it differs from RoBERTa: *pre layer norm*. In the first Transformers, a norm stood
# *on* the stream, after every addition. Here it stands on the *branch*, before each sublayer. The next two cells draw
# the difference.


# %%
def box(ax, x, y, text, color):
    shape = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "none"}
    ax.text(x, y, text, ha="center", va="center", color="white", bbox=shape, zorder=3)


def sublayer(ax, x, name, pre):
    norm, work, plus = (x + 1.0, x + 2.8, x + 4.1) if pre else (x + 4.1, x + 1.5, x + 2.8)
    ax.plot([x, x, plus, plus], [0, 1, 1, 0.2], color=GREY, lw=1.5)
    box(ax, norm, 1 if pre else 0, "LayerNorm", ORANGE)
    box(ax, work, 1, name, BLUE)
    ax.text(plus, 0, "+", ha="center", va="center_baseline", fontsize=13, zorder=3)
    ax.plot(plus, 0, "o", ms=15, mfc="white", mec=INK, mew=1.5)


# %%
fig, rows = plt.subplots(2, 1, figsize=(7.6, 3.4), layout="constrained")
post_title = "Post-norm (RoBERTa): two norms stand on the stream"
pre_title = "Pre-norm (this model): nothing stands on the stream"
arrow = {"arrowstyle": "-|>", "color": INK, "lw": 2.5}
for ax, title, pre in [(rows[0], post_title, False), (rows[1], pre_title, True)]:
    ax.annotate("", (11.2, 0), (-0.3, 0), arrowprops=arrow, zorder=1)
    ax.text(-0.45, 0, "x", ha="right", va="center", fontsize=12, style="italic")
    sublayer(ax, 0.3, "attention", pre)
    sublayer(ax, 5.8, "feed-forward", pre)
    ax.set(title=title, xlim=(-0.9, 11.4), ylim=(-0.5, 1.45))
    ax.axis("off")
plt.show()

# %% [markdown]
# In the lower row, a straight line leads from the first vector to the last. Each block is two additions:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{LN}(x)), \qquad x \leftarrow x + \mathrm{feedforward}(\mathrm{LN}(x)).$$
#
# Gradients flow back along the same straight line, and so deep models of this kind are easier to train
# ([Xiong et al. 2020](https://arxiv.org/abs/2002.04745)).

# %% [markdown]
# ## 1. Reading the checkpoint
#
# A trained model is a file of arrays with names. The *safetensors* format is simple enough to read by hand:
#
# | bytes | content |
# |---|---|
# | 8 | $n$, the size of the header, as a little-endian integer |
# | $n$ | the header: JSON with the dtype, the shape and the place of every array |
# | the rest | the arrays, one after another |

# %%
demo = Path(tinyroberta.__file__).parent / "demo"  # a small trained model that comes with the library
config = json.loads((demo / "config.json").read_text())
file = (demo / "model.safetensors").read_bytes()
size = int.from_bytes(file[:8], "little")
header = json.loads(file[8 : 8 + size])
data = file[8 + size :]
header.pop("__metadata__", None)

for name, entry in header.items():
    if ".layer." not in name or ".layer.0." in name:
        print(f"{entry['dtype']} {entry['shape']!s:12} {name}")

# %% [markdown]
# The names are the map of the model. Read them from the left: `encoder.layer.0.attention.self.query.weight` is the
# matrix that makes the queries, in the attention of the first layer. The other layers have the same names with 1, 2,
# ... in place of 0.
#
# The dtype is **bfloat16**, "brain float": the first 16 bits of a float32. They are the sign, the 8 bits of the
# exponent, and 7 bits of the fraction. With the leading 1 that is never stored, that makes 8 bits of precision: two to
# three decimal digits. To get a float32 again, put 16 zero bits at the end. This step is exact.


# %%
def read(name):
    """One array of the file, as float32."""
    entry = header[name]
    assert entry["dtype"] == "BF16"
    start, end = entry["data_offsets"]
    bits = np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


# %%
def show(text, x):
    b = f"{np.float32(x).view(np.uint32):032b}"
    print(f"{text:20} {x:+.8f}   {b[0]} {b[1:9]} {b[9:16]} | {b[16:]}")


print(f"{'':34} ± exponent 7 bits  | the 16 that bfloat16 leaves out")
show("pi in float32", np.float32(np.pi))
show("a weight of the file", read("lm_head.dense.weight")[0, 0])

# %% [markdown]
# Now all of it, as a nested dict. A dot in a name is one step down. So the weights of a layer norm, for example, are
# a dict with the keys `weight` and `bias`. That is just what a function's `**` wants, and we shall use it everywhere.

# %%
weights = {}
for name in header:
    *path, leaf = name.split(".")
    branch = weights
    for part in path:
        branch = branch.setdefault(part, {})
    branch[leaf] = read(name)

roberta = weights["roberta_prelayernorm"]
H = config["num_attention_heads"]
d = config["hidden_size"] // H
eps = config["layer_norm_eps"]
print(f"{sum(read(name).size for name in header):,} numbers")
print(f"{config['num_hidden_layers']} layers of width D = {H * d}: H = {H} heads of d = {d}")

# %% [markdown]
# ## 2. From text to ids
#
# The model knows a fixed list of tokens: frequent words are one token, rare words are several pieces. `Ġ` stands for
# a space before the token. `<s>` opens every text and `</s>` closes it.

# %%
tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
text = "He opened the <mask> and walked into the room."
encoding = tokenizer.encode(text)
ids = np.array(encoding.ids)  # (S,)
place = encoding.ids.index(tokenizer.token_to_id("<mask>"))
labels = [token.replace("Ġ", "").strip() for token in encoding.tokens]
print(encoding.tokens)
print(ids)
print(tokenizer.encode("unforgettable handkerchiefs").tokens)

# %% [markdown]
# Attention, as we shall see, does not know the order of the words. So each token is also told its *position*.
#
# $$\mathrm{position}_i = \mathrm{pad} + \sum_{j \le i} [\mathrm{id}_j \ne \mathrm{pad}]$$
#
# The first token has position `pad_token_id + 1`, which is 2, not 0. Short texts in a batch are filled up with the token
# `<pad>`, whose id is 1, and row 1 of the position table is set aside for it. Counting starts after that row, and row 0
# is never used. This is a habit of the first RoBERTa, and its descendants were trained with it. A program that starts at
# 0 still gives answers. They are only somewhat worse, which makes this a hard bug to notice.

# %%
pad = config["pad_token_id"]
real = ids != pad
positions = np.cumsum(real) * real + pad  # (S,)
print("positions", positions)
rows = config["max_position_embeddings"]
print(f"the table has {rows} rows, so a text has at most {rows - pad - 1} tokens")

# %% [markdown]
# ## 3. Embeddings
#
# The first vector of a token is a sum of three rows from three tables: what the word is, where it stands, and which
# segment it is in (RoBERTa has only one segment).
#
# $$e_i = E^{\mathrm{word}}_{\mathrm{id}_i} + E^{\mathrm{position}}_{\mathrm{position}_i} + E^{\mathrm{type}}_0$$
#
# Then comes a **layer norm**, as in RoBERTa. It takes each vector by itself: subtract the mean of its $D$ numbers, divide
# by their standard deviation, then scale and shift with a learned gain $g$ and bias $b$.
#
# $$\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} \odot g + b, \qquad
# \mu = \frac{1}{D}\sum_k x_k, \quad \sigma^2 = \frac{1}{D}\sum_k (x_k - \mu)^2$$
#
# $\varepsilon$ keeps the division safe when all the numbers are equal. In the file, $g$ is called `weight` and $b$ is
# called `bias`.


# %%
def layer_norm(x, weight, bias):  # (S, D), (D,), (D,) -> (S, D)
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


# (S,), (S,) -> (S, D)
def embed(ids, positions, word_embeddings, position_embeddings, token_type_embeddings, LayerNorm):
    x = word_embeddings["weight"][ids] + position_embeddings["weight"][positions]
    return layer_norm(x + token_type_embeddings["weight"][0], **LayerNorm)


x = embed(ids, positions, **roberta["embeddings"])
print("x", x.shape, x.dtype)

# %% [markdown]
# Nobody told the model that position 5 is next to position 6: each row of the table is a free vector. What did training
# make of it? The picture takes away what all positions share, their mean, and compares every position with every other by
# the cosine of the angle between the two vectors. A negative cosine is white, like 0.

# %%
rows = roberta["embeddings"]["position_embeddings"]["weight"][pad + 1 :]  # (256, D)
rows = rows - rows.mean(0)  # less what all positions share
rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
fig, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
image = ax.imshow((rows @ rows.T)[:64, :64], cmap=BLUES, vmin=0, vmax=1)
ax.set(title="Which positions look alike?", xlabel="place in the text", ylabel="place in the text")
fig.colorbar(image, label="cosine of two position vectors", shrink=0.9)
plt.show()

# %% [markdown]
# ## 4. Attention
#
# Now the tokens read each other. Every token makes three vectors out of its own normed vector $h = \mathrm{LN}(x)$:
#
# - a **query** $q$: what am I looking for?
# - a **key** $k$: what can I be found by?
# - a **value** $v$: what do I give to those who find me?
#
# $$q = h W_q^\top + b_q, \qquad k = h W_k^\top + b_k, \qquad v = h W_v^\top + b_v$$
#
# A matrix is stored as (outputs, inputs), hence the transpose.


# %%
def linear(x, weight, bias):  # (S, I), (O, I), (O,) -> (S, O)
    return x @ weight.T + bias


attention = roberta["encoder"]["layer"]["0"]["attention"]  # the first layer
h = layer_norm(x, **attention["LayerNorm"])  # (S, D)
q = linear(h, **attention["self"]["query"])  # (S, D)
k = linear(h, **attention["self"]["key"])  # (S, D)
v = linear(h, **attention["self"]["value"])  # (S, D)
print("q", q.shape, " k", k.shape, " v", v.shape)

# %% [markdown]
# The $D$ columns are $H$ **heads** of $d$ columns each. A head is a small attention of its own. Take the first one.
#
# How well token $i$'s query meets token $j$'s key is their dot product, the **score** $s_{ij} = q_i \cdot k_j /
# \sqrt{d}$. Why $\sqrt{d}$? A dot product sums $d$ terms. If they are independent and of size 1, the sum has a
# standard deviation of $\sqrt{d}$:

# %%
rng = np.random.default_rng(0)
dots = (rng.standard_normal((10_000, d)) * rng.standard_normal((10_000, d))).sum(-1)
print(f"standard deviation of a dot product: {dots.std():.2f}, and sqrt(d) = {math.sqrt(d):.2f}")

scores = q[:, :d] @ k[:, :d].T  # (S, S)
scores = scores / math.sqrt(d)  # back to a size that does not depend on d

# %% [markdown]
# The **softmax** turns each row of scores into shares that are positive and sum to 1. Subtracting the row's largest
# score first changes nothing in the result, and keeps $\exp$ from overflowing.
#
# $$p_{ij} = \frac{\exp(s_{ij})}{\sum_l \exp(s_{il})} = \frac{\exp(s_{ij} - m_i)}{\sum_l \exp(s_{il} - m_i)},
# \qquad m_i = \max_l s_{il}$$
#
# What token $i$ takes away is the average of the values, weighted by these shares: $c_i = \sum_j p_{ij} v_j$.


# %%
def softmax(x):  # (..., S) -> same
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


p = softmax(scores)  # (S, S)
c = p @ v[:, :d]  # (S, S), (S, d) -> (S, d)
print("p", p.shape, " each row sums to", p.sum(-1).round(6))
print("c", c.shape)


# %%
def name_tokens(axis, rotation=0):
    axis.set_ticks(range(len(labels)), labels, rotation=rotation)
    axis.get_ticklabels()[place].set(color=ORANGE, weight="bold")


def heatmap(ax, p, title):
    name_tokens(ax.xaxis, rotation=90)
    name_tokens(ax.yaxis)
    ax.set_title(title)
    return ax.imshow(p, cmap=BLUES, vmin=0, vmax=1)


fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
image = heatmap(ax, p, "Layer 0, head 0: who reads whom")
ax.set(xlabel="is read (key)", ylabel="reads (query)")
fig.colorbar(image, label="share of attention", shrink=0.85)
plt.show()

# %% [markdown]
# Read the picture row by row: a row is one token, and the dark cells are the tokens it listens to.
#
# The other heads do the same with other columns. One reshape makes all of them at once. Then the heads' results are
# put side by side again, and one more matrix, `output.dense`, mixes them into what attention adds to the stream.
#
# $$\mathrm{attention}(h) = [c^{(1)}, \dots, c^{(H)}] W_o^\top + b_o$$


# %%
def split(x):  # (S, D) -> (H, S, d)
    return x.reshape(len(x), H, d).transpose(1, 0, 2)


def join(x):  # (H, S, d) -> (S, D)
    return x.transpose(1, 0, 2).reshape(x.shape[1], H * d)


def shares(h, query, key):  # (S, D) -> (H, S, S)
    q, k = split(linear(h, **query)), split(linear(h, **key))
    return softmax(q @ k.transpose(0, 2, 1) / math.sqrt(d))


# %%
def self_attention(x, LayerNorm, self, output):  # (S, D) -> (S, D)
    h = layer_norm(x, **LayerNorm)
    p = shares(h, self["query"], self["key"])  # (H, S, S)
    v = split(linear(h, **self["value"]))  # (H, S, d)
    return linear(join(p @ v), **output["dense"])


print("attention adds", self_attention(x, **attention).shape)
every = shares(h, attention["self"]["query"], attention["self"]["key"])  # (H, S, S)
assert np.allclose(every[0], p, atol=1e-6)  # the first head is the one we did step by step

# %%
fig, axes = plt.subplots(2, 2, figsize=(6.6, 6.3), layout="constrained")
for head, ax in enumerate(axes.flat[:H]):
    image = heatmap(ax, every[head], f"head {head}")
    ax.label_outer()
fig.supxlabel("is read (key)")
fig.supylabel("reads (query)")
fig.suptitle("Layer 0: what each head reads", x=0.02, ha="left")
fig.colorbar(image, ax=axes, label="share of attention", shrink=0.4)
plt.show()

# %% [markdown]
# Heads 2 and 3 are rulers. Whatever the words are, head 2 reads the token one place *ahead* and head 3 the one *behind*,
# with nearly all of its share. (Only at the two ends of the text they read something else.)
# Nobody built that in. The positions are a part of what is normed, and training has made queries that meet the key of the
# next position. Without positions both heads are lost, as the second number shows. Heads of this kind are found in most
# trained Transformers ([Voita et al. 2019](https://arxiv.org/abs/1905.09418)): from them, the layers above know which
# words are neighbours.

# %%
still = np.full(len(ids), positions[1])  # every token at one place
unplaced = layer_norm(embed(ids, still, **roberta["embeddings"]), **attention["LayerNorm"])
lost = shares(unplaced, attention["self"]["query"], attention["self"]["key"])  # (H, S, S)
for head, step, name in [(2, 1, "ahead"), (3, -1, "behind")]:
    share, without = (x[head].diagonal(step)[1:-1].min() for x in (every, lost))
    print(f"head {head} gives at least {share:.1%} to the token one place {name}; without positions {without:.1%}")
    assert share > 0.9 > 0.5 > without

# %% [markdown]
# ## 5. Feed-forward
#
# After reading, each token thinks for itself: up to a wider vector, through a bend, and back down.
#
# $$\mathrm{feedforward}(h) = \mathrm{gelu}(h W_1^\top + b_1) W_2^\top + b_2$$
#
# Without the bend, the two matrices would be no more than one. The bend here is the exact **GELU**: the number times the
# probability that a standard normal number is below it ([Hendrycks and Gimpel 2016](https://arxiv.org/abs/1606.08415)).
#
# $$\mathrm{gelu}(x) = x \Phi(x) = \frac{x}{2}\left(1 + \mathrm{erf}\left(\frac{x}{\sqrt{2}}\right)\right)$$
#
# NumPy has no `erf`. Python's `math.erf` takes one number at a time, and `np.vectorize` calls it for each. That is
# slow, and fine here.

# %%
erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


grid = np.linspace(-4, 3, 400)
fig, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
ax.axhline(0, color=GREY, lw=0.8)
ax.plot(grid, np.maximum(grid, 0), color=GREY, lw=2, ls="--", label="relu(x) = max(x, 0)")
ax.plot(grid, gelu(grid), color=BLUE, lw=2, label="gelu(x)")
ax.set(title="GELU: a ReLU without the corner", xlabel="x", ylabel="gelu(x)")
ax.legend(frameon=False)
plt.show()


# %%
def feed_forward(x, intermediate, output):  # (S, D) -> (S, I) -> (S, D)
    h = layer_norm(x, **intermediate["LayerNorm"])
    h = gelu(linear(h, **intermediate["dense"]))
    return linear(h, **output["dense"])


# %% [markdown]
# ## 6. The block, and the loop
#
# Everything is there. The block is the two additions from the picture at the top:


# %%
def block(x, attention, intermediate, output):  # (S, D) -> (S, D)
    x = x + self_attention(x, **attention)
    return x + feed_forward(x, intermediate, output)


states = [x]  # the stream before the first layer, then after each
for layer in roberta["encoder"]["layer"].values():
    states.append(block(states[-1], **layer))
print(len(states), "states of shape", states[-1].shape)

# %% [markdown]
# The stream is only ever added to. Nothing on it scales it down, so its vectors tend to get longer with depth. A norm
# at the very end, the *final* layer norm, brings them back to a size that the head can read.

# %%
final = layer_norm(states[-1], **roberta["LayerNorm"])  # (S, D)
lengths = np.linalg.norm([*states, final], axis=-1)  # (N + 2, S)
depth = ["embeddings", *(f"after layer {i}" for i in range(len(states) - 1)), "final norm"]
fig, ax = plt.subplots(figsize=(6, 3.1), layout="constrained")
end = [len(states) - 1, len(states)]  # the last state and the final norm: a dotted line
for i in [*range(len(labels)), place]:  # <mask> last, on top
    style = {"color": ORANGE, "lw": 2} if i == place else {"color": GREY, "lw": 1}
    ax.plot(lengths[:-1, i], marker="o", ms=4, **style)
    ax.plot(end, lengths[-2:, i], marker="o", ms=4, ls=":", **style)
ax.legend([ax.lines[-2], ax.lines[0]], ["<mask>", "the other tokens"], frameon=False)
ax.set_xticks(range(len(depth)), depth)
ax.set(title="The residual stream through depth", ylabel="length of the vector", ylim=(0, None))
plt.show()

# %% [markdown]
# And what did the hole read, on the way up? Each row of the next picture is one head of one layer, and shows the row
# of `<mask>` in its table of shares.

# %%
reads = []
for state, layer in zip(states, roberta["encoder"]["layer"].values(), strict=False):
    h = layer_norm(state, **layer["attention"]["LayerNorm"])
    part = layer["attention"]["self"]
    reads.extend(shares(h, part["query"], part["key"])[:, place])  # H x (S,)
fig, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
image = ax.imshow(reads, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
name_tokens(ax.xaxis, rotation=90)
ax.set_yticks(range(len(reads)), [f"layer {i // H}, head {i % H}" for i in range(len(reads))])
for i in range(H, len(reads), H):
    ax.axhline(i - 0.5, color=GREY)
ax.set(title="What the <mask> reads", xlabel="is read (key)")
fig.colorbar(image, label="share of attention", shrink=0.7)
plt.show()

# %% [markdown]
# ## 7. The answer
#
# The **language-model head** turns the vector of each token into one number for every word of the vocabulary, its
# *logit*:
#
# $$z = \mathrm{LN}(\mathrm{gelu}(x W^\top + b)) E_{\mathrm{word}}^\top + b_{\mathrm{word}}$$
#
# The last matrix is nothing new. It is the table of word embeddings from step 3, used the other way round: *tied*. A
# word is the answer if its own vector points where the result points. That is why the file has no
# `lm_head.decoder.weight`.


# %%
def lm_head(x, head, words):  # (S, D) -> (S, V)
    h = layer_norm(gelu(linear(x, **head["dense"])), **head["layer_norm"])
    return linear(h, words, head["bias"])


def top(logits, count=5):  # (V,) -> the best words with their probabilities
    p = softmax(logits)
    return [(tokenizer.decode([i]), p[i]) for i in np.argsort(-p)[:count]]


words = roberta["embeddings"]["word_embeddings"]["weight"]  # (V, D)
logits = lm_head(final, weights["lm_head"], words)  # (S, V)
print("logits", logits.shape)

# %% [markdown]
# A softmax over the vocabulary makes probabilities of the logits. Here is the answer for the hole:

# %%
print(text, "\n")
for word, probability in top(logits[place]):
    print(f"{word:>14} {probability:6.1%} {'█' * round(40 * probability)}")

# %% [markdown]
# The answer is not made at once. Each layer leaves a vector on the same stream, so we may ask early: put the final
# norm and the head on the state after *each* layer. This is the **logit lens** ([nostalgebraist
# 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)). The head was trained only
# for the last state, so take the early answers as a hint and not as a measurement.


# %%
def lens(state):  # (S, D) -> (V,)
    return lm_head(layer_norm(state, **roberta["LayerNorm"]), weights["lm_head"], words)[place]


table = [top(lens(state)) for state in states]  # a row for each state, its five best words
shown = [[p for _, p in row] for row in table]
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
image = ax.imshow(shown, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
for i, row in enumerate(table):
    for j, (word, p) in enumerate(row):
        color = "white" if p > 0.4 else INK
        ax.text(j, i, f"{word.strip()}\n{p:.1%}", ha="center", va="center", color=color)
ax.set_xticks(range(5), ["best", "2nd", "3rd", "4th", "5th"])
ax.set_yticks(range(len(table)), depth[:-1])
ax.set(title="What the model would answer after each layer")
fig.colorbar(image, label="probability")
plt.show()

# %% [markdown]
# ## 8. Is it equal?
#
# The whole model once more, in a few lines. Next to it, the library, with its plainest backend.


# %%
def forward(ids, positions, weights):  # (S,), (S,) -> (S, V)
    roberta = weights["roberta_prelayernorm"]
    x = embed(ids, positions, **roberta["embeddings"])
    for layer in roberta["encoder"]["layer"].values():
        x = block(x, **layer)
    x = layer_norm(x, **roberta["LayerNorm"])
    return lm_head(x, weights["lm_head"], roberta["embeddings"]["word_embeddings"]["weight"])


def cast(tree, dtype):  # the same tree of arrays in another dtype
    if isinstance(tree, dict):
        return {name: cast(branch, dtype) for name, branch in tree.items()}
    return tree.astype(dtype)


# %%
for dtype, allowed in [("float32", 1e-5), ("float64", 1e-13)]:
    model = tinyroberta.load(demo, backend="numpy", dtype=dtype)
    theirs = model(ids[None]).logits[0]  # a batch of one -> (S, V)
    ours = forward(ids, positions, cast(weights, dtype))
    assert ours.dtype == theirs.dtype == dtype
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{dtype}: largest difference {difference:.1e} of the largest logit")
    assert difference < allowed

# %% [markdown]
# The two programs sum in different orders and compute erf in different ways, so they round differently. In float64, what
# is left is of the size of float64's own rounding. Two programs can hardly be closer.

# %% [markdown]
# ## 9. Try it
#
# A tool to play with, then four exercises. Think before you open the answers.


# %%
def answer(logits):  # (V,) -> one line of text
    return ", ".join(f"{word.strip()} {p:.1%}" for word, p in top(logits))


def fill(text):
    encoding = tokenizer.encode(text)
    ids = np.array(encoding.ids)
    logits = forward(ids, np.arange(len(ids)) + pad + 1, weights)
    return answer(logits[encoding.ids.index(tokenizer.token_to_id("<mask>"))])


print(fill("He opened the <mask> and walked into the room."))

# %% [markdown]
# **1. Both sides.** Does the model use what comes *after* the hole? Begin with "He took the `<mask>`", and end the sentence
# in different ways.
#
# <details><summary>Answer</summary>
#
# Yes: every token reads every other, to the left and to the right. The words before the hole are the same here, and the
# best answer is another each time. None is as sure as the door was: after "opened the", a small model hardly looks further.
#
# ```python
# ends = ["rode away", "read it to his wife", "drank the wine", "put it on the table"]
# found = [fill(f"He took the <mask> and {end}.") for end in ends]
# for end, line in zip(ends, found, strict=True):
#     print(f"He took the <mask> and {end}. -> {line}")
# assert len({line.split()[0] for line in found}) == len(ends)
# ```
# </details>

# %% [markdown]
# **2. Order.** Give every token the *same* position. What happens to the logits when you shuffle the tokens?
#
# <details><summary>Answer</summary>
#
# They are shuffled in the same way, and are otherwise the same. Attention is a sum over tokens, and everything else
# takes one token at a time: without positions, a sentence is a bag of words.
#
# ```python
# same = np.full(len(ids), pad + 1)
# order = np.random.default_rng(0).permutation(len(ids))
# assert np.allclose(forward(ids[order], same, weights), forward(ids, same, weights)[order], atol=1e-3)
# print("without order:", answer(forward(ids, same, weights)[place]))
# ```
# </details>

# %% [markdown]
# **3. Hide a token.** Put $-\infty$ into the scores of the column of one token, for all heads and layers, so that
# nobody reads it. Is that the same as leaving the token out?
#
# <details><summary>Answer</summary>
#
# Yes, if the others keep their positions: $\exp(-\infty)$ is exactly 0. The library uses this: a token that a mask
# hides is not computed at all.
#
# ```python
# hidden, plain_shares = 2, shares
#
# def shares(h, query, key):  # (S, D) -> (H, S, S)
#     q, k = split(linear(h, **query)), split(linear(h, **key))
#     scores = q @ k.transpose(0, 2, 1) / math.sqrt(d)
#     scores[:, :, hidden] = -np.inf
#     return softmax(scores)
#
# masked = forward(ids, positions, weights)
# shares = plain_shares
# others = np.arange(len(ids)) != hidden
# assert np.allclose(masked[others], forward(ids[others], positions[others], weights), atol=1e-3)
# print("without", labels[hidden], "->", answer(masked[place]))
# ```
# </details>

# %% [markdown]
# **4. Remove a head.** Which head matters most for this hole? (Hint: a head's result enters the stream through $d$
# columns of `attention.output.dense.weight`.)
#
# <details><summary>Answer</summary>
#
# Set these columns to 0, ask again, and put them back. The smaller the probability that is left, the more the head
# mattered.
#
# ```python
# best = int(np.argmax(logits[place]))
# for number, layer in roberta["encoder"]["layer"].items():
#     matrix = layer["attention"]["output"]["dense"]["weight"]  # (D, D)
#     kept = matrix.copy()
#     for head in range(H):
#         matrix[:, head * d : (head + 1) * d] = 0
#         left = softmax(forward(ids, positions, weights)[place])[best]
#         print(f"without layer {number}, head {head}:{tokenizer.decode([best])} {left:.1%}")
#         matrix[:] = kept
# ```
# </details>

# %% [markdown]
# ## 10. Questions that come up
#
# - *Where is dropout?* It belongs to training. A model that answers computes every number.
# - *What about a batch of texts of different lengths?* The short ones are padded, and a mask hides the padding:
#   [notebook 03](03_attention_in_pictures.ipynb), section 4.
# - *Do all heads matter?* No. Notebook 03 removes them one by one, over a page of text.
# - *Is the logit lens more than a hint?* [Notebook 04](04_reading_the_stream.ipynb) measures it, and then changes vectors
#   instead of looking at them.
# - *How do I get a vector for a text, or a label?* Other heads read the same final vectors, most of them only that of
#   `<s>`: the end of [`forward.py`](../tinyroberta/forward.py).
# - *Why are the library's other backends faster, with the same numbers?*
#   [Notebook 05](05_from_numpy_to_machine_code.ipynb).
#
# ## Where to read next
#
# - [Norm and add](02_norm_and_add.ipynb): what the place of the norm does to the stream.
# - [`tinyroberta/forward.py`](../tinyroberta/forward.py): the same data flow, for batches, with masks, a cache and all
#   the heads. You know it already.
# - [`tinyroberta/backends/numpy.py`](../tinyroberta/backends/numpy.py): every operation in plain NumPy, with an `erfc` of
#   its own in place of `math.erf`.
#
# Papers: [Attention is all you need](https://arxiv.org/abs/1706.03762), [RoBERTa](https://arxiv.org/abs/1907.11692),
# [On layer normalization in the Transformer architecture](https://arxiv.org/abs/2002.04745).

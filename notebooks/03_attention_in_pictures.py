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
# # Attention in pictures
#
# A Transformer's tokens read each other through *heads*. This model has sixteen of them. Here you see what each one looks
# at, how widely it looks, what a mask does to it, and what the model loses without it.
#
# One sentence proves nothing about a head. So every claim here is a number that is measured over a whole page of a
# novel. The code that measures it is never longer than a screen.
#
# You need about a quarter of an hour, and [the forward pass by hand](01_forward_by_hand.ipynb) before it.
#
# Shapes are written in comments: **B** texts, **S** tokens of a text, **T** tokens of all texts one after another,
# **H** heads of width **d**, **V** words.

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
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from tokenizers import Tokenizer

import tinyroberta

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#d9782d", "#9aa5b1"
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#a9c6e6", BLUE, "#12355b"])
plt.rc("figure", dpi=100)
plt.rc("font", size=10)
plt.rc("text", color=INK)
plt.rc("axes", titlesize=11, titlelocation="left", edgecolor=GREY, labelcolor=INK)
plt.rc("axes.spines", top=False, right=False)

# %% [markdown]
# ## 1. A tap on the model
#
# In notebook 01 we computed the shares of attention ourselves. There is a shorter way: `tinyroberta.trace` records what
# passes through a model, under the names that Hugging Face gives to its modules. The shares are called `probs`.

# %%
demo = Path(tinyroberta.__file__).parent / "demo"
tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
model = tinyroberta.load(demo, backend="numpy")
N, H = model.config.num_hidden_layers, model.config.num_attention_heads
d = model.config.hidden_size // H
print(f"{N} layers of {H} heads of width {d}")

encoding = tokenizer.encode("The old man opened the door, looked at the sea, and went down to his boat.")
with tinyroberta.trace(model, "*.probs") as trace:
    model(np.array([encoding.ids]))
for name in trace:
    print(name, trace[name].shape)

# %% [markdown]
# One array a layer, (T, H, K): a row for each token that reads, then the head, then the token that is read. The next
# function sorts them by heads, for any number of texts. The tokens of a batch stand one after another in T, without
# padding, so we cut at the texts' lengths. Head `1.3` will mean layer 1, head 3. Both are counted from 0.


# %%
def shares(ids, mask):  # (B, S) x2 -> B x (N H, S of the text, S of the text)
    with tinyroberta.trace(model, "*.probs") as trace:
        model(ids, attention_mask=mask)
    lengths = mask.sum(1)
    layers = np.concatenate([trace[name] for name in trace], axis=1)  # (T, N H, K)
    texts = np.split(layers, lengths.cumsum()[:-1])
    return [text[:, :, :n].transpose(1, 0, 2) for text, n in zip(texts, lengths, strict=True)]


head_names = [f"{layer}.{head}" for layer in range(N) for head in range(H)]
one = np.array([encoding.ids])
sentence = shares(one, np.ones_like(one))[0]
print(sentence.shape)
assert np.allclose(sentence.sum(-1), 1, atol=1e-5)

# %%
fig, axes = plt.subplots(N, H, figsize=(5.6, 4.9), layout="constrained")
for p, name, ax in zip(sentence, head_names, axes.flat, strict=True):
    image = ax.imshow(p, cmap=BLUES, vmin=0, vmax=1)
    ax.set_title(name, loc="center")
    ax.set(xticks=[], yticks=[])
fig.suptitle("Sixteen heads read one sentence", x=0.02, ha="left")
fig.supxlabel("is read (first token left, last token right)", fontsize=10)
fig.supylabel("reads (first token on top)", fontsize=10)
fig.colorbar(image, ax=axes, label="share of attention", shrink=0.5)
plt.show()

# %% [markdown]
# Some heads draw a sharp line beside the diagonal, some a cloud around it, some columns. A line just *above* the diagonal
# (0.2, 1.1) is a head that reads the next token; just *below* (0.3, 1.2), the one before. This is one sentence, so take
# it as a set of guesses. Now we test them.

# %% [markdown]
# ## 2. A page to measure on
#
# These are nine paragraphs of Arthur Conan Doyle's *The Valley of Fear* (1915). The book is in the public domain. It was
# among those that were held out when this model was trained, so the model has never read it.

# %%
page = """
It was the fourth of February in the year 1875. It had been a severe winter, and the snow lay deep in the gorges of
the Gilmerton Mountains. The steam ploughs had, however, kept the railroad open, and the evening train which connects
the long line of coal-mining and iron-working settlements was slowly groaning its way up the steep gradients which
lead from Stagville on the plain to Vermissa, the central township which lies at the head of Vermissa Valley. From
this point the track sweeps downward to Bartons Crossing, Helmdale, and the purely agricultural county of Merton. It
was a single track railroad; but at every siding--and they were numerous--long lines of trucks piled with coal and
iron ore told of the hidden wealth which had brought a rude population and a bustling life to this most desolate
corner of the United States of America.

For desolate it was! Little could the first pioneer who had traversed it have ever imagined that the fairest prairies
and the most lush water pastures were valueless compared to this gloomy land of black crag and tangled forest. Above
the dark and often scarcely penetrable woods upon their flanks, the high, bare crowns of the mountains, white snow,
and jagged rock towered upon each flank, leaving a long, winding, tortuous valley in the centre. Up this the little
train was slowly crawling.

The oil lamps had just been lit in the leading passenger car, a long, bare carriage in which some twenty or thirty
people were seated. The greater number of these were workmen returning from their day's toil in the lower part of the
valley. At least a dozen, by their grimed faces and the safety lanterns which they carried, proclaimed themselves
miners. These sat smoking in a group and conversed in low voices, glancing occasionally at two men on the opposite
side of the car, whose uniforms and badges showed them to be policemen.

Several women of the labouring class and one or two travellers who might have been small local storekeepers made up
the rest of the company, with the exception of one young man in a corner by himself. It is with this man that we are
concerned. Take a good look at him; for he is worth it.

He is a fresh-complexioned, middle-sized young man, not far, one would guess, from his thirtieth year. He has large,
shrewd, humorous gray eyes which twinkle inquiringly from time to time as he looks round through his spectacles at the
people about him. It is easy to see that he is of a sociable and possibly simple disposition, anxious to be friendly
to all men. Anyone could pick him at once as gregarious in his habits and communicative in his nature, with a quick
wit and a ready smile. And yet the man who studied him more closely might discern a certain firmness of jaw and grim
tightness about the lips which would warn him that there were depths beyond, and that this pleasant, brown-haired
young Irishman might conceivably leave his mark for good or evil upon any society to which he was introduced.

Having made one or two tentative remarks to the nearest miner, and receiving only short, gruff replies, the traveller
resigned himself to uncongenial silence, staring moodily out of the window at the fading landscape.

It was not a cheering prospect. Through the growing gloom there pulsed the red glow of the furnaces on the sides of
the hills. Great heaps of slag and dumps of cinders loomed up on each side, with the high shafts of the collieries
towering above them. Huddled groups of mean, wooden houses, the windows of which were beginning to outline themselves
in light, were scattered here and there along the line, and the frequent halting places were crowded with their
swarthy inhabitants.

The iron and coal valleys of the Vermissa district were no resorts for the leisured or the cultured. Everywhere there
were stern signs of the crudest battle of life, the rude work to be done, and the rude, strong workers who did it.

The young traveller gazed out into this dismal country with a face of mingled repulsion and interest, which showed
that the scene was new to him. At intervals he drew from his pocket a bulky letter to which he referred, and on the
margins of which he scribbled some notes. Once from the back of his waist he produced something which one would hardly
have expected to find in the possession of so mild-mannered a man. It was a navy revolver of the largest size. As he
turned it slantwise to the light, the glint upon the rims of the copper shells within the drum showed that it was
fully loaded. He quickly restored it to his secret pocket, but not before it had been observed by a working man who
had seated himself upon the adjoining bench.
"""
texts = [" ".join(paragraph.split()) for paragraph in page.split("\n\n")]
encodings = tokenizer.encode_batch(texts)
lengths = np.array([len(e.ids) for e in encodings])
ids = np.full((len(texts), lengths.max()), model.config.pad_token_id)  # (B, S)
for row, e in zip(ids, encodings, strict=True):
    row[: len(e.ids)] = e.ids
mask = np.arange(ids.shape[1]) < lengths[:, None]  # (B, S), where there is text
print(f"{len(texts)} texts, {lengths.sum()} tokens, {page.count(',')} commas")
read = shares(ids, mask)  # B x (N H, S, S)

# %% [markdown]
# First question: **how far away** is what a head reads? For each head, take the share that it gives to the token $n$
# places ahead (or behind), averaged over all tokens of the page.

# %%
far = 8
near = np.zeros((N * H, 2 * far + 1))
count = np.zeros(2 * far + 1)
for p in read:
    for step in range(-far, far + 1):
        line = p.diagonal(step, 1, 2)  # (N H, tokens that have a neighbour there)
        near[:, step + far] += line.sum(-1)
        count[step + far] += line.shape[-1]
near /= count

fig, ax = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
image = ax.imshow(near, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
ax.set_yticks(range(N * H), head_names)
ax.set_xticks(range(0, 2 * far + 1, 2), [f"{step:+d}" if step else "itself" for step in range(-far, far + 1, 2)])
for layer in range(1, N):
    ax.axhline(layer * H - 0.5, color=GREY, lw=1)
ax.set(title="Where each head looks, by distance", xlabel="place of what is read, from the reader", ylabel="head")
fig.colorbar(image, label="share of attention", shrink=0.8)
plt.show()

# %% [markdown]
# The guesses hold. Layer 0 has one ruler in each direction, 0.2 and 0.3, and layer 1 has a second pair, 1.1 and 1.2.
# The last layer's 3.0 and 3.3 mostly read the token itself.

# %%
behind, itself, ahead = near[:, far - 1], near[:, far], near[:, far + 1]
for title, share in [("one behind", behind), ("itself", itself), ("one ahead", ahead)]:
    best = np.argsort(-share)[:3]
    print(f"{title:10}", ", ".join(f"{head_names[i]} {share[i]:.0%}" for i in best))
assert {head_names[i] for i in np.argsort(-behind)[:2]} == {"0.3", "1.2"}
assert behind[3] > 0.95 > behind[6] > 0.5
assert {head_names[i] for i in np.argsort(-ahead)[:2]} == {"0.2", "1.1"}
assert np.sort(ahead)[-2:].min() > 0.85
assert {head_names[i] for i in np.argsort(-itself)[:2]} == {"3.0", "3.3"}
assert np.sort(itself)[-2:].min() > 0.5

# %% [markdown]
# Second question: **what** does a head read? Three groups of tokens are worth a look: commas, other punctuation, and the
# two tokens that frame a text. To say that a head *looks for* commas, we need to know how much a head gives to them by
# chance. A head that spreads evenly gives them just their share of the tokens. That is the last row.


# %%
def is_punctuation(id):
    text = tokenizer.decode([id]).strip()
    return bool(text) and not any(letter.isalnum() for letter in text)


comma = tokenizer.token_to_id(",")
marks = np.array([is_punctuation(id) for id in range(tokenizer.get_vocab_size())])  # (V,)
groups = {
    "comma": lambda row: row == comma,
    "other\npunctuation": lambda row: marks[row] & (row != comma),
    "<s> and\n</s>": lambda row: np.isin(row, [0, 2]),
}
given = np.zeros((N * H + 1, len(groups)))
for p, row, n in zip(read, ids, lengths, strict=True):
    for column, member in enumerate(groups.values()):
        given[:-1, column] += p[:, :, member(row[:n])].sum((1, 2))
        given[-1, column] += member(row[:n]).mean() * n
given /= lengths.sum()

fig, ax = plt.subplots(figsize=(5, 5.4), layout="constrained")
ax.imshow(given, cmap=BLUES, vmin=0, vmax=0.35, aspect="auto")
for (i, j), share in np.ndenumerate(given):
    ax.text(j, i, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.15 else INK)
ax.axhline(N * H - 0.5, color=INK, lw=1.5)
ax.set_xticks(range(len(groups)), list(groups))
ax.set_yticks(range(N * H + 1), [*head_names, "by chance"])
ax.set(title="One head looks for punctuation: 1.3", ylabel="head")
plt.show()

punctuation = given[:, :2].sum(1)
print(f"1.3 gives {punctuation[7]:.0%} to punctuation; by chance it would be {punctuation[-1]:.0%}")
assert punctuation[7] > 2.5 * punctuation[-1]
assert punctuation[7] == punctuation.max()

# %% [markdown]
# There is no head for commas alone. Head 1.3 gives commas twice as much as chance, and other punctuation more than that.
# In the picture by distance it looks *ahead*. So it seems to ask: what ends this piece of the sentence, and how soon?
# The next cell counts on which side the punctuation stands that it reads.
#
# Notice also what is *not* there. Many of BERT's heads park their attention on `[SEP]`, the token that ends a text, when
# they find nothing to read ([Clark et al. 2019](https://arxiv.org/abs/1906.04341)). Here no head gives even a tenth to the
# two tokens that frame a text.

# %%
before = after = 0
for p, row, n in zip(read, ids, lengths, strict=True):
    to_marks = p[7] * marks[row[:n]]  # (S, S), the shares that go to punctuation
    before, after = before + np.tril(to_marks, -1).sum(), after + np.triu(to_marks, 1).sum()
print(f"of what 1.3 gives to punctuation, {after / (before + after):.0%} goes to punctuation that follows")
assert after > 10 * before
assert given[7, 0] > 1.8 * given[-1, 0]
assert given[:-1, 2].max() < 0.1

# %% [markdown]
# ## 3. How widely does it look?
#
# A head that gives all to one token is *sharp*. One that gives the same to all is *flat*. The **entropy** of its shares
# says where it stands between the two, in bits:
#
# $$\mathrm{entropy}(p) = -\sum_j p_j \log_2 p_j$$
#
# Two to the power of it reads more easily: it is the number of tokens that an evenly spread head would read to be just
# as flat. The dot is the median over all tokens of the page, and the line holds the middle nine tenths of them.

# %%
bits = np.concatenate([-(p * np.log2(p + 1e-30)).sum(-1) for p in read], axis=1)  # (N H, T)
low, middle, high = 2 ** np.percentile(bits, [5, 50, 95], axis=1)  # (N H,) x3

fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
where = np.arange(N * H)
ax.hlines(where, low, high, color=GREY, lw=3)
ax.plot(middle, where, "o", color=BLUE, ms=6)
for layer in range(1, N):
    ax.axhline(layer * H - 0.5, color=GREY, lw=0.6, ls=":")
ax.set_yticks(where, head_names)
ax.set_xticks([1, 2, 5, 10, 20, 50, 100, 200])
ax.set(xscale="log", xlabel="tokens read (two to the power of the entropy)", ylabel="head")
ax.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], ["1", "2", "5", "10", "20", "50", "100", "200"])
ax.minorticks_off()
ax.invert_yaxis()
ax.set_title("Every layer has sharp heads and flat heads")
plt.show()

print(f"sharpest: {head_names[middle.argmin()]} reads {middle.min():.1f} tokens; "
      f"flattest: {head_names[middle.argmax()]} reads {middle.max():.0f}")  # fmt: skip
assert head_names[(high / low).argmax()] == "3.3"
assert low[15] < 1.5
assert high[15] > 20
assert all(middle[i : i + H].min() < 4 and middle[i : i + H].max() > 9 for i in range(0, N * H, H))

# %% [markdown]
# Head 0.0 reads nearly everything at once: it takes an average of the text. A head that reads a single token at some places
# and many at others has a long line. The longest one is that of 3.3: from one token to more than twenty.

# %% [markdown]
# ## 4. What a mask hides
#
# Texts of a batch have different lengths. The shorter ones are filled up with `<pad>`, and the *attention mask* says
# which tokens are real. Attention puts $-\infty$ in place of the scores of the others, and since $e^{-\infty} = 0$, they
# get a share of exactly 0.
#
# What if you forget the mask? No error is raised. Then `<pad>` is a token like any other, and is read.

# %%
text = "She opened the <mask> and looked out at the sea."
short = tokenizer.encode(text)
n = len(short.ids)
padded = np.array([short.ids + [model.config.pad_token_id] * 8])  # (1, S + 8)
real = np.arange(n + 8)[None] < n
forgotten = np.ones_like(real)
hole = short.ids.index(tokenizer.token_to_id("<mask>"))

with_mask = np.zeros((n + 8, n + 8))
with_mask[:n, :n] = shares(padded, real)[0][0]  # head 0.0; what is hidden is not even computed
without = shares(padded, forgotten)[0][0]

fig, axes = plt.subplots(1, 2, figsize=(5.4, 2.9), layout="constrained")
for ax, p, title in [(axes[0], with_mask, "with the mask"), (axes[1], without, "without")]:
    image = ax.imshow(p[:n], cmap=BLUES, vmin=0, vmax=0.15, aspect="auto")
    ax.axvline(n - 0.5, color=ORANGE, lw=1.5)
    ax.set_title(title)
    ax.set_xticks([n / 2 - 0.5, n + 3.5], ["text", "<pad>"])
    ax.set_yticks([])
    ax.get_xticklabels()[1].set(color=ORANGE, weight="bold")
axes[0].set_ylabel("reads (tokens of the text)")
fig.suptitle("Head 0.0: without a mask, padding is read", x=0.02, ha="left")
fig.colorbar(image, ax=axes, label="share of attention", shrink=0.8, extend="max")
plt.show()


# %%
def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def door(ids, mask):  # how probable "door" is in the hole
    return softmax(model(ids, attention_mask=mask).logits[0, hole].astype(np.float64))[tokenizer.token_to_id("Ġdoor")]


alone = door(padded[:, :n], real[:, :n])
print(f"alone, without padding     {alone:.4%}")
print(f"padded, with the mask      {door(padded, real):.4%}")
print(f"padded, mask forgotten     {door(padded, forgotten):.4%}")
assert abs(door(padded, real) - alone) < 1e-5
assert abs(door(padded, forgotten) - alone) > 1e-2

# %% [markdown]
# With the mask, padding changes nothing that matters: any difference is rounding. Without it, the answer depends on how
# long the *other* texts of the batch are. It still looks reasonable, and that makes this bug hard to find.

# %% [markdown]
# ## 5. What `<mask>` does
#
# `<mask>` is another matter. It is a token that is read and reads, but it tells nothing about its word. Do the heads know?
#
# Hide every eighth whole word of the page. For each head, compare two shares that the *other* tokens give to these
# places: with `<mask>` there, and with the word there.


# %%
def whole_words(encoding):  # places of tokens that are a word by themselves
    tokens = encoding.tokens
    ends = [not token[0].isalpha() or token[0] == "Ġ" for token in [*tokens[1:], "</s>"]]
    return [i for i, token in enumerate(tokens) if token[0] == "Ġ" and token[1:].isalpha() and ends[i]]


def hide(first, step):  # -> ids with holes, (B, S) of booleans: where they are
    holes = np.zeros(ids.shape, bool)
    for row, e in zip(holes, encodings, strict=True):
        row[whole_words(e)[first::step]] = True
    return np.where(holes, tokenizer.token_to_id("<mask>"), ids), holes


masked, holes = hide(0, 8)
print(f"{holes.sum()} words are hidden, {holes.sum() / lengths.sum():.0%} of the tokens")
to_holes, to_words = np.zeros(N * H), np.zeros(N * H)
for sums, found in [(to_holes, shares(masked, mask)), (to_words, read)]:
    for p, hidden, n in zip(found, holes, lengths, strict=True):
        sums += p[:, ~hidden[:n]][:, :, hidden[:n]].sum((1, 2))
ratio = to_holes / to_words

# %%
fig, ax = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
ax.barh(where, ratio, color=np.where(ratio < 0.4, ORANGE, BLUE), height=0.7)
ax.axvline(1, color=INK, lw=1)
ax.text(1.02, 0.02, "as much\nas the word", transform=ax.get_xaxis_transform(), va="bottom", fontsize=9)
ax.set_yticks(where, head_names)
ax.invert_yaxis()
ax.set(title="Four heads look away from a hole", ylabel="head")
ax.set(xlabel="share for <mask> / share for the word that was there", xlim=(0, 1.5))
plt.show()

away = [head_names[i] for i in np.flatnonzero(ratio < 0.4)]
print("look away:", *away)
print("the rulers:", ", ".join(f"{head_names[i]} {ratio[i]:.2f}" for i in (2, 3, 5)))
assert away == ["1.0", "2.3", "3.0", "3.3"]
assert all(0.8 < ratio[i] < 1.25 for i in (2, 3, 5))

# %% [markdown]
# The rulers 0.2, 0.3 and 1.1 do not care: they count places, and a hole is a place. Other heads read what stands there,
# and these have learned that a hole has nothing to give.
#
# And the hole itself? Head 3.0 usually reads the token that it stands on. A hole has no use for that:

# %%
own = {}
for name, found in [("words", read), ("holes", shares(masked, mask))]:
    p = np.concatenate([p[:, range(n), range(n)][:, h[:n]] for p, h, n in zip(found, holes, lengths, strict=True)], axis=1)
    own[name] = p.mean(1)  # (N H,), the share that goes to the token itself
for i in (12, 15):
    print(f"{head_names[i]} reads its own place: {own['words'][i]:.0%} on words, {own['holes'][i]:.0%} on holes")
    assert own["words"][i] > 2 * own["holes"][i]

# %% [markdown]
# ## 6. What is lost without a head?
#
# A picture shows where a head looks. It does not show whether the model needs it. To find out, take it away and count
# what that costs. This is called an **ablation**.
#
# A head's result is $d$ columns of `attention.self`, just before the matrix that mixes the heads. The tap can *replace*
# what passes: our function is given the array and returns another one.
#
# The cost is measured on hidden words: by how much does the logarithm of the right word's probability fall? In units of
# the natural logarithm, called nats, 0.7 means that the probability is halved. We hide every fourth word, twice with a
# different start.


# %%
def scores(replace=None):  # the log probability of each hidden word
    found = []
    for masked, holes in rounds:
        with tinyroberta.trace(model, [], replace=replace):
            logits = model(masked, attention_mask=mask, logits_to_keep=holes).logits.astype(np.float64)
        p = softmax(logits)  # (hidden words, V)
        found.append(np.log(p[range(len(p)), ids[holes]]))
    return np.concatenate(found)


rounds = [hide(0, 4), hide(2, 4)]
whole = scores()
print(f"{len(whole)} hidden words; the right one gets {np.exp(whole).mean():.0%} on average")


# %%
def without_heads(*heads):
    def silence(_name, x):  # (T, H d) -> same
        x = x.reshape(len(x), H, d)
        x[:, heads] = 0
        return x.reshape(len(x), H * d)

    return silence


lost = []
for layer in range(N):
    for head in range(H):
        ablated = scores({f"encoder.layer.{layer}.attention.self": without_heads(head)})
        lost.append(whole - ablated)
lost = np.array(lost)  # (N H, hidden words)
cost, error = lost.mean(1), lost.std(1) / np.sqrt(lost.shape[1])

# %%
rulers = np.isin(head_names, ["0.2", "0.3", "1.1", "1.2"])
fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
ax.barh(where, cost, xerr=2 * error, color=np.where(rulers, ORANGE, BLUE), height=0.7, error_kw={"ecolor": INK, "lw": 1})
ax.set_yticks(where, head_names)
ax.invert_yaxis()
ax.legend([ax.patches[3], ax.patches[0]], ["reads a neighbour", "another head"], frameon=False, loc="lower right")
ax.set(title="What each head is worth: 0.3 most of all", ylabel="head")
ax.set(xlabel="cost of removing it (nats; lines: two standard errors)")
plt.show()

for i in np.argsort(-cost)[:4]:
    print(f"without {head_names[i]}: {cost[i]:.2f} nats, the probability is {np.exp(-cost[i]):.2f} times what it was")
worst = int(cost.argmax())
assert head_names[worst] == "0.3"
assert cost[worst] > np.sort(cost)[-4:-1].sum()
assert np.any((cost - 2 * error)[-2 * H :] < 0)
assert all(cost[i : i + H].sum() > cost[i + H : i + 2 * H].sum() for i in range(0, (N - 1) * H, H))

# %% [markdown]
# One head of sixteen carries more than any three others: the ruler that reads the word before. Below it the price falls
# with depth, and some heads of the last layers cost nothing that these hidden words could show: the line of two standard
# errors reaches 0. Large models have many such heads ([Michel et al. 2019](https://arxiv.org/abs/1905.10650)).
#
# What does it look like in a sentence?

# %%
pair = np.array([short.ids])
for name, replace in [("all heads", None), ("without 0.3", {"encoder.layer.0.attention.self": without_heads(3)})]:
    with tinyroberta.trace(model, [], replace=replace):
        p = softmax(model(pair).logits[0, hole].astype(np.float64))
    print(f"{name:12}", ", ".join(f"{tokenizer.decode([i]).strip()} {p[i]:.0%}" for i in np.argsort(-p)[:5]))

# %% [markdown]
# ## 7. Is a ruler all it is?
#
# We *call* 0.3 a ruler because that is what it seems to do. Here is a stronger test. Replace its shares by an exact
# ruler, drawn by hand: everything to the token before, whatever the words are. If the model cannot tell the difference,
# the name is right.


# %%
def rule(head, step):
    def draw(_name, p):  # (T, H, K) -> same
        places = np.concatenate([np.arange(n) for n in lengths])  # of each row in its text
        last = np.repeat(lengths - 1, lengths)
        p[:, head] = 0
        p[range(len(p)), head, np.clip(places + step, 0, last)] = 1
        return p

    return draw


for layer, head, step in [(0, 2, 1), (0, 3, -1), (1, 1, 1), (1, 2, -1)]:
    by_hand = scores({f"encoder.layer.{layer}.attention.self.probs": rule(head, step)})
    loss = (whole - by_hand).mean()
    print(f"{layer}.{head}: a ruler by hand costs {loss:+.3f} nats, no head at all {cost[layer * H + head]:+.3f}")
    assert loss < cost[layer * H + head] / 2

# %% [markdown]
# The rulers of layer 0 and 1.1 can be replaced by one line of code each, at next to no cost. 1.2 is a ruler only in
# part: it gives about six tenths to the word before.
#
# Be careful all the same with what a picture *explains*: where attention goes is not yet what the model does with it
# ([Jain and Wallace 2019](https://arxiv.org/abs/1902.10186)). Seeing, then removing, then replacing is a way to be more
# sure at each step.

# %% [markdown]
# ## 8. Try it
#
# **1. Two at once.** Layer 1 has a second ruler for each direction. Is it a spare part? Remove 0.2 and 1.1 together, and
# compare with the sum of what each costs alone.
#
# <details><summary>Answer</summary>
#
# Together they cost more than the two alone. So each one stood in for a part of the other, and measuring them one by one
# hid it. For that reason "this head costs nothing" never means "these ten heads cost nothing".
#
# ```python
# both = scores({"encoder.layer.0.attention.self": without_heads(2), "encoder.layer.1.attention.self": without_heads(1)})
# together, apart = (whole - both).mean(), cost[2] + cost[5]
# print(f"together {together:.2f} nats, the sum of each alone {apart:.2f}")
# assert together > 1.3 * apart
# ```
# </details>

# %% [markdown]
# **2. Another nothing.** Silencing a head with 0 may be unfair: the rest of the model has never seen 0 there. Replace the
# head's result by its *mean* over the page instead. Which heads look less important now?
#
# <details><summary>Answer</summary>
#
# Head 0.0 loses most of its cost. It reads nearly everything at once, so what it gives is much the same for every token,
# and a constant can stand in for it. The ruler 0.3 stays the most expensive one: what matters in it is *which* word it
# reads.
#
# ```python
# def mean_of(head):
#     def still(_name, x):  # (T, H d) -> same
#         columns = slice(head * d, (head + 1) * d)
#         x[:, columns] = x[:, columns].mean(0)
#         return x
#
#     return still
#
# for head in range(H):
#     steady = (whole - scores({"encoder.layer.0.attention.self": mean_of(head)})).mean()
#     print(f"0.{head}: {steady:.2f} nats with the mean, {cost[head]:.2f} with 0")
#     if head == 0:
#         assert steady < cost[0] / 2
# ```
# </details>

# %% [markdown]
# **3. A whole layer.** Which layer's attention could you remove altogether, at the least cost? Guess first.
#
# <details><summary>Answer</summary>
#
# The last one's. By then the reading is nearly done. Without the first layer's attention, almost nothing is left.
#
# ```python
# whole_layers = []
# for layer in range(N):
#     silent = scores({f"encoder.layer.{layer}.attention.self": without_heads(*range(H))})
#     whole_layers.append((whole - silent).mean())
#     print(f"without the attention of layer {layer}: {whole_layers[-1]:.2f} nats")
# assert whole_layers == sorted(whole_layers, reverse=True)
# assert whole_layers[0] > 4  # the probability is less than a fiftieth of what it was
# ```
# </details>

# %% [markdown]
# ## Where to read next
#
# - [Reading the stream](04_reading_the_stream.ipynb): what the heads write, and where a sentence's answer comes from.
# - [`tinyroberta/tap.py`](../tinyroberta/tap.py): how the tap finds its names.
#
# Papers: [What does BERT look at?](https://arxiv.org/abs/1906.04341), [Analyzing multi-head self-attention: specialized
# heads do the heavy lifting, the rest can be pruned](https://arxiv.org/abs/1905.09418), [Are sixteen heads really better
# than one?](https://arxiv.org/abs/1905.10650).

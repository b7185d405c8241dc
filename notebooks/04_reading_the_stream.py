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
# # Reading the stream
#
# [Notebook 03](03_attention_in_pictures.ipynb) showed what the heads look at. This one shows what they *move*. We read the
# model's stream of vectors at every depth, then change one vector at a time and watch the answer follow. In the end we
# know in which layer, at which place and by which two heads a name is looked up.
#
# You need about a quarter of an hour, and [the forward pass by hand](01_forward_by_hand.ipynb) before it.
#
# Shapes are written in comments: **B** texts, **S** tokens of a text, **T** tokens of all texts one after another, **D**
# the width of a vector, **H** heads of width **d**, **V** words.

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
# ## 1. One model, asked five times
#
# The *residual stream* is one vector for each token. It starts as an embedding, and every layer adds to it. So there is a
# state before the first layer and one after each: five states for these four layers.
#
# `tinyroberta.trace` records them under the names of the modules whose results they are.

# %%
demo = Path(tinyroberta.__file__).parent / "demo"
tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
model = tinyroberta.load(demo, backend="numpy")
N, H = model.config.num_hidden_layers, model.config.num_attention_heads
d = model.config.hidden_size // H
MASK = tokenizer.token_to_id("<mask>")

STATES = ["embeddings", *(f"encoder.layer.{i}" for i in range(N))]
DEPTH = ["embeddings", *(f"after layer {i}" for i in range(N))]

ids = np.array([tokenizer.encode("The girl lost <mask> hat.").ids])  # (1, S)
with tinyroberta.trace(model, STATES) as trace:
    model(ids)
for name in STATES:
    print(name, trace[name].shape)

# %% [markdown]
# What would the model answer if it had to stop after layer 1? The **logit lens** asks this: hand an early state to the
# final norm and the head, as if it were the last one ([nostalgebraist
# 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)).
#
# The tap can do that without any arithmetic of ours. It can not only record what passes, but `replace` it. So we let
# the early state pass where the last one would.


# %%
def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lens(ids, mask=None, keep=0):  # -> (N + 1, ..., V), a row for each state
    with tinyroberta.trace(model, STATES) as trace:
        model(ids, attention_mask=mask)
    answers = []
    for name in STATES:
        with tinyroberta.trace(model, [], replace={STATES[-1]: lambda *_, early=trace[name]: early}):
            answers.append(softmax(model(ids, attention_mask=mask, logits_to_keep=keep).logits))
    return np.array(answers)


answers = lens(ids)[:, 0]  # (N + 1, S, V)
assert np.array_equal(answers[-1], softmax(model(ids).logits[0]))  # the last state itself changes nothing


# %%
def word(id):
    return tokenizer.decode([id], skip_special_tokens=False).strip() or "↵"  # the end of a line


def grid(ax, shown, tokens, hole, **style):
    image = ax.imshow(shown, cmap=BLUES, aspect="auto", **style)
    ax.set_xticks(
        range(len(tokens)), [token.replace("Ġ", "").strip() for token in tokens], rotation=60, ha="right", rotation_mode="anchor"
    )
    ax.get_xticklabels()[hole].set(color=ORANGE, weight="bold")
    ax.set_yticks(range(N + 1), DEPTH)
    ax.invert_yaxis()
    return image


tokens = tokenizer.encode("The girl lost <mask> hat.").tokens
fig, ax = plt.subplots(figsize=(5.8, 3.2), layout="constrained")
image = grid(ax, answers.max(-1), tokens, hole=4, vmin=0, vmax=1)
for (i, j), p in np.ndenumerate(answers.max(-1)):
    ax.text(j, i, word(answers[i, j].argmax()), ha="center", va="center", color="white" if p > 0.4 else INK)
ax.set_title("The lens: best answer at each place and depth")
fig.colorbar(image, label="probability")
plt.show()

# %% [markdown]
# Read it from the bottom to the top, as the stream flows. In the hole, under `<mask>`, the answer is put together on the
# way up. At the other places the lens often shows words that are not there. No wonder: this model was trained to fill
# holes, and its head was never asked for a word that can be seen.
#
# That was one sentence. Now a page: the first paragraphs of Rafael Sabatini's *Captain Blood* (1922), in the public
# domain, and held out when the model was trained. Every whole word is hidden once, one in four at a time.

# %%
page = """
Peter Blood, bachelor of medicine and several other things besides, smoked a pipe and tended the geraniums boxed on
the sill of his window above Water Lane in the town of Bridgewater.

Sternly disapproving eyes considered him from a window opposite, but went disregarded. Mr. Blood's attention was
divided between his task and the stream of humanity in the narrow street below; a stream which poured for the second
time that day towards Castle Field, where earlier in the afternoon Ferguson, the Duke's chaplain, had preached a
sermon containing more treason than divinity.

These straggling, excited groups were mainly composed of men with green boughs in their hats and the most ludicrous of
weapons in their hands. Some, it is true, shouldered fowling pieces, and here and there a sword was brandished; but
more of them were armed with clubs, and most of them trailed the mammoth pikes fashioned out of scythes, as formidable
to the eye as they were clumsy to the hand. There were weavers, brewers, carpenters, smiths, masons, bricklayers,
cobblers, and representatives of every other of the trades of peace among these improvised men of war. Bridgewater,
like Taunton, had yielded so generously of its manhood to the service of the bastard Duke that for any to abstain
whose age and strength admitted of his bearing arms was to brand himself a coward or a papist.

"Quo, quo, scelesti, ruitis?"
"""
encodings = tokenizer.encode_batch([" ".join(paragraph.split()) for paragraph in page.split("\n\n")])
lengths = np.array([len(e.ids) for e in encodings])
texts = np.full((len(encodings), lengths.max()), model.config.pad_token_id)  # (B, S)
for row, e in zip(texts, encodings, strict=True):
    row[: len(e.ids)] = e.ids
mask = np.arange(texts.shape[1]) < lengths[:, None]  # (B, S)


def whole_words(encoding):  # places of tokens that are a word by themselves
    tokens = encoding.tokens
    ends = [not token[0].isalpha() or token[0] == "Ġ" for token in [*tokens[1:], "</s>"]]
    return [i for i, token in enumerate(tokens) if token[0] == "Ġ" and token[1:].isalpha() and ends[i]]


def first_choices(hide):  # -> (N + 1, words): where the lens sees the right word first
    found = []
    for first in range(4):
        asked = np.zeros(texts.shape, bool)
        for row, e in zip(asked, encodings, strict=True):
            row[whole_words(e)[first::4]] = True
        answers = lens(np.where(asked, MASK, texts) if hide else texts, mask, asked)  # (N + 1, words, V)
        found.append(answers.argmax(-1) == texts[asked])
    return np.concatenate(found, axis=1)


hidden, seen = first_choices(True), first_choices(False)
print(f"{lengths.sum()} tokens, {hidden.shape[1]} whole words")

# %% [markdown]
# A second lens, to see what the head does not show: which word of the table of embeddings is the vector *nearest* to, by
# the cosine? (First take away what all vectors share: the mean.)

# %%
table = np.asarray(model.tensors["embeddings.word_embeddings.weight"], np.float32)  # (V, D)
table = table - table.mean(0)
table /= np.linalg.norm(table, axis=1, keepdims=True)
with tinyroberta.trace(model, STATES) as trace:
    model(texts, attention_mask=mask)
nearest = [((trace[name] - trace[name].mean(0)) @ table.T).argmax(1) == texts[mask] for name in STATES]

shown = {
    "nearest word vector, where the word is seen": (np.mean(nearest, 1), INK, "--"),
    "lens, where the word is seen": (seen.mean(1), BLUE, "-"),
    "lens, where the word is hidden": (hidden.mean(1), ORANGE, "-"),
}
fig, ax = plt.subplots(figsize=(5.2, 3.9), layout="constrained")
for name, (share, color, style) in shown.items():
    ax.plot(share, color=color, ls=style, lw=2, marker="o", ms=5, label=name)
    print(f"{name:45}", " ".join(f"{s:4.0%}" for s in share))
ax.set_xticks(range(N + 1), [name.replace("after ", "after\n") for name in DEPTH])
ax.set(title="What was read fades, the answer appears", ylabel="share of words that are right", ylim=(0, 1.05))
ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
plt.show()

forgets, answers_seen, answers_hidden = (share for share, *_ in shown.values())
assert forgets[0] > 0.99
assert np.all(np.diff(forgets) < 0)
assert np.all(np.diff(answers_hidden) > 0)
assert answers_hidden[0] < 0.02
assert answers_hidden[-1] > 0.3
assert answers_hidden[-2] > 0.9 * answers_hidden[-1]

# %% [markdown]
# Two things happen on the way up. The stream forgets what the token *was*, layer by layer. And in a hole, each layer makes
# the right word more often the first choice. Most of it is done before the last layer.
#
# The head was trained for the last state only, so what the lens sees earlier is a lower bound: the stream may hold more
# than this head can read there.

# %% [markdown]
# ## 2. How long are the vectors?
#
# Each layer adds, and nothing takes away, unless a layer learns to subtract. Does the hole's vector grow in the same way
# as the others? The size here is the root of the mean square of a vector's numbers.

# %%
holes = np.zeros(texts.shape, bool)
for row, e in zip(holes, encodings, strict=True):
    row[whole_words(e)[::4]] = True
with tinyroberta.trace(model, STATES) as trace:
    model(np.where(holes, MASK, texts), attention_mask=mask)
sizes = np.array([np.sqrt(np.square(trace[name]).mean(-1)) for name in STATES])  # (N + 1, T)
at_hole = holes[mask]  # (T,)

fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
for which, color, name in [(~at_hole, BLUE, "tokens"), (at_hole, ORANGE, "holes")]:
    low, middle, high = np.percentile(sizes[:, which], [5, 50, 95], axis=1)
    ax.fill_between(range(N + 1), low, high, color=color, alpha=0.25, lw=0)
    ax.plot(middle, color=color, lw=2, marker="o", ms=5, label=f"{name}: median, and nine tenths")
ax.set_xticks(range(N + 1), [name.replace("after ", "after\n") for name in DEPTH])
ax.set(title="The stream grows with depth", ylabel="size of a vector", ylim=(0, None))
ax.legend(frameon=False, loc="upper left")
plt.show()

growth = [np.median(sizes[-1, which]) / np.median(sizes[0, which]) for which in (~at_hole, at_hole)]
print(f"growth from the embeddings to the end: {growth[0]:.1f} times at tokens, {growth[1]:.1f} times in holes")
assert all(7 < times < 10 for times in growth)

# %% [markdown]
# It does: both become about eight times as long. So length does not tell where something is decided. We need a better
# question.

# %% [markdown]
# ## 3. Where is a name looked up?
#
# Now to a question about *where*. Read this:
#
# > Mr. Brown spoke first. I looked at Mr. `<mask>` and waited.
#
# The missing word is there to be copied, nine tokens earlier. Does the model do that? Eight surnames, each a
# single token:

# %%
NAMES = ["Brown", "Smith", "Wilson", "Scott", "Adams", "Gibson", "White", "Graham"]
NAME_IDS = np.array([tokenizer.token_to_id("Ġ" + name) for name in NAMES])


def sentences(template, words):  # -> (B, S)
    return np.array([tokenizer.encode(template.format(word)).ids for word in words])


template = "Mr. {} spoke first. I looked at Mr. <mask> and waited."
named = sentences(template, NAMES)
tokens = tokenizer.encode(template.format("Brown")).tokens
S, place, hole = named.shape[1], tokens.index("ĠBrown"), list(named[0]).index(MASK)


def in_hole(ids, hole, replace=None):  # (B, S) -> (B, V), the logits there
    with tinyroberta.trace(model, [], replace=replace):
        return model(ids, logits_to_keep=np.array([hole])).logits[:, 0].astype(np.float64)


p = softmax(in_hole(named, hole))
own = p[range(len(NAMES)), NAME_IDS]  # (B,)
others = (p[:, NAME_IDS].sum(1) - own) / (len(NAMES) - 1)
for name, mine, other in zip(NAMES, own, others, strict=True):
    print(f"{name:8} in the text: {mine:6.1%} in the hole; another of the eight gets {other:.1%} on average")
assert (p.argmax(1) == NAME_IDS).all()

# %% [markdown]
# It copies: each time the name of the text is the first choice. Somewhere on the way, the name must have moved from its own
# place to the hole. To find out where, we **patch** ([Meng et al. 2022](https://arxiv.org/abs/2202.05262) call it causal
# tracing):
#
# 1. Run the sentence with *Smith*, and keep the stream.
# 2. Run the sentence with *Brown*, but at **one** place of **one** state, put in the vector of the *Smith* run.
# 3. See whether the answer is now Smith.
#
# If it is, this one vector carried the name at that depth. We measure on a scale from 0 (still Brown) to 1 (all Smith):
# the logit of the one name less the logit of the other, rescaled. Each of the eight sentences is given vectors of the
# next.


# %%
def patched(state, where, donor):  # a replacement: at one place, the donor's vector
    def put(_name, x):  # (B S, D) -> same
        rows = x.reshape(len(donor), -1, x.shape[-1])
        rows[:, where] = donor[:, where]
        return rows.reshape(x.shape)

    return {state: put}


def moved(logits, start, end, yes, no):  # on the scale from 0 to 1, mean over sentences
    def lead(z):
        rows = range(len(z))
        return (z[rows, yes] - z[rows, no]).mean()

    return (lead(logits) - lead(start)) / (lead(end) - lead(start))


def trace_cause(ids, other, hole, yes, no):  # (B, S) x2 -> (N + 1, S)
    start, end = in_hole(ids, hole), in_hole(other, hole)
    with tinyroberta.trace(model, STATES) as donor:
        model(other)
    effect = np.zeros((N + 1, ids.shape[1]))
    for i, state in enumerate(STATES):
        vectors = donor[state].reshape(*other.shape, -1)  # (B, S, D)
        for where in range(ids.shape[1]):
            logits = in_hole(ids, hole, patched(state, where, vectors))
            effect[i, where] = moved(logits, start, end, yes, no)
    return effect


other = np.roll(named, -1, axis=0)  # sentence i is given the vectors of i + 1
effect = trace_cause(named, other, hole, yes=np.roll(NAME_IDS, -1), no=NAME_IDS)

# %%
tokens[place] = "NAME"
fig, ax = plt.subplots(figsize=(5.8, 3.4), layout="constrained")
image = grid(ax, effect, tokens, hole, vmin=0, vmax=1)
ax.get_xticklabels()[place].set(color=BLUE, weight="bold")
ax.set_title("A name stays at its place until the last layer")
fig.colorbar(image, label="effect of one patched vector")
plt.show()

for i, name in enumerate(DEPTH):
    print(f"{name:14} at the name {effect[i, place]:.2f}, in the hole {effect[i, hole]:.2f}")
assert np.isclose(effect[0, place], 1)
assert np.isclose(effect[N, hole], 1)
assert effect[N - 1, place] > 0.7 > 0.3 > effect[N - 1, hole]

# %% [markdown]
# Two corners are certain beforehand. At the bottom left, patching the name's embedding *is* changing the word. At the top,
# only the hole's vector reaches the answer. What the picture tells is the way between the two: the name waits at its own
# place, layer after layer, and crosses to the hole in the last one.
#
# Something in layer 3 carries it, and only attention moves anything between places. Patch its heads one by one: in the
# hole, the part of attention's result that is this head's.

# %%
effect_of, reads = np.zeros((N, H)), np.zeros((N, H))
start, end = in_hole(named, hole), in_hole(other, hole)
with tinyroberta.trace(model, ["*.attention.self", "*.probs"]) as donor:
    model(other)
for layer in range(N):
    state = f"encoder.layer.{layer}.attention.self"
    given = donor[state].reshape(len(NAMES), S, H, d)
    for head in range(H):

        def put(_name, x, head=head, given=given):  # (B S, H d) -> same
            parts = x.reshape(given.shape)
            parts[:, hole, head] = given[:, hole, head]
            return parts.reshape(x.shape)

        logits = in_hole(named, hole, {state: put})
        effect_of[layer, head] = moved(logits, start, end, np.roll(NAME_IDS, -1), NAME_IDS)
    reads[layer] = donor[f"{state}.probs"].reshape(len(NAMES), S, H, S)[:, hole, :, place].mean(0)

heads = [f"{layer}.{head}" for layer in range(N) for head in range(H)]
fig, axes = plt.subplots(1, 2, figsize=(5.6, 3.8), layout="constrained", sharey=True)
for ax, values, label in [(axes[0], reads, "share of the hole's attention"), (axes[1], effect_of, "effect of the patch")]:
    carries = np.isin(heads, ["3.0", "3.3"])
    ax.barh(range(N * H), values.ravel(), color=np.where(carries, ORANGE, BLUE), height=0.7)
    ax.set_xlabel(label)
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1])
axes[0].set_title("reads the name")
axes[1].set_title("carries the name")
axes[0].set_yticks(range(N * H), heads)
axes[0].set_ylabel("head")
axes[0].invert_yaxis()
plt.show()

print("carried by 3.0 and 3.3:", effect_of[3, [0, 3]].round(2), " read:", reads[3, [0, 3]].round(2))
assert effect_of[3, 0] > 0.5
assert effect_of[3, [0, 3]].sum() > 0.7
assert (reads[3, [0, 3]] > 0.7).all()
assert reads[2, 3] > 0.5 > 0.2 > effect_of[2, 3]

# %% [markdown]
# Heads 3.0 and 3.3 do it. In [notebook 03](03_attention_in_pictures.ipynb) these were the two that read the token they
# stand on, except in holes. Now we know what they do there.
#
# And look at head 2.3: it reads the name as well, but what it carries changes little. *Reading is not carrying.* A share
# of attention alone would have misled us.

# %% [markdown]
# ## 4. How does it find the name?
#
# The name is nine places away. How does the hole know that it should read just there? One guess: both places come
# after "Mr." If the match is what counts, then another title before the hole should make the copy fail.

# %%
titles = ["Mr", "Mrs", "Captain", "Lady", "Doctor"]
copied = []
for title in titles:
    changed = sentences(f"Mr. {{}} spoke first. I looked at {title}. <mask> and waited.", NAMES)
    assert changed.shape == named.shape
    copied.append(softmax(in_hole(changed, hole))[range(len(NAMES)), NAME_IDS].mean())

fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
bars = ax.barh(titles, copied, color=[ORANGE, *[BLUE] * 4], height=0.65)
ax.bar_label(bars, [f"{c:.0%}" for c in copied], padding=3)
ax.invert_yaxis()
ax.set(title='After "Mr. NAME": who gets the name?', xlim=(0, 0.8))
ax.set(xlabel="probability of NAME in the hole", ylabel="title before the hole")
plt.show()

assert abs(copied[0] - copied[1]) < 0.05
assert copied[2] < 0.8 * copied[0]
assert copied[4] < 0.3 * copied[0]

# %% [markdown]
# The title matters. *Mr.* and *Mrs.* are the same to this model, a *Doctor* is somebody else.
#
# So the hole's vector must know which title stands before it, two places back, behind the full stop. Notebook 03
# found heads that read one place back: 0.3 and 1.2. Two such steps are two places. Silence each of them **in the
# hole only**, and see whether head 3.0 still finds the name.


# %%
def silenced(layer, head, where):
    def silence(_name, x):  # (B S, H d) -> same
        parts = x.reshape(len(NAMES), S, H, d)
        parts[:, where, head] = 0
        return parts.reshape(x.shape)

    return {f"encoder.layer.{layer}.attention.self": silence}


def look_up(replace):  # head 3.0's share for the name, and the name's probability
    probs = "encoder.layer.3.attention.self.probs"
    with tinyroberta.trace(model, probs, replace=replace) as trace:
        logits = model(named, logits_to_keep=np.array([hole])).logits[:, 0]
    share = trace[probs].reshape(len(NAMES), S, H, S)[:, hole, 0, place].mean()
    return share, softmax(logits)[range(len(NAMES)), NAME_IDS].mean()


print("                  3.0 reads the name   the name's probability")
found = {}
for title, replace in [
    ("all heads", None),
    ("without 1.2", silenced(1, 2, hole)),
    ("without 0.3", silenced(0, 3, hole)),
    ("without 3.0", silenced(3, 0, hole)),
    ("without 2.3", silenced(2, 3, hole)),
    ("without 1.1", silenced(1, 1, hole)),
]:
    found[title] = look_up(replace)
    print(f"{title:12} {found[title][0]:18.0%} {found[title][1]:23.0%}")
assert found["without 1.2"][1] < found["all heads"][1] / 4
assert found["without 0.3"][1] < found["all heads"][1] / 4
assert found["without 3.0"][1] < found["all heads"][1] / 2
assert found["without 1.2"][0] < 0.3 < 0.8 < found["all heads"][0]
assert found["without 2.3"][1] > 0.9 * found["all heads"][1]

# %% [markdown]
# Without either ruler in this *one place*, head 3.0 hardly finds the name any more. Without head 3.0 itself, most of the
# answer is gone, though its picture of attention is the same as before. And two other heads that read something, 2.3 and
# 1.1, are not missed. So here is a circuit of three steps, each of which we have seen and then broken:
#
# 1. the rulers of layers 0 and 1 tell the hole what stands before it;
# 2. heads 3.0 and 3.3 look for a place that has the same before it;
# 3. they bring the word of that place.
#
# Circuits of this kind are called *induction heads* in models that write from left to right ([Olsson et al.
# 2022](https://arxiv.org/abs/2209.11895)).

# %% [markdown]
# ## 5. Is every fact carried like that?
#
# Another sentence, and another thing to know: whether *his* or *her* hat.

# %%
PAIRS = "boy girl, man woman, king queen, father mother, brother sister, uncle aunt, prince princess"
PEOPLE = [word for pair in PAIRS.split(", ") for word in pair.split()]
hats = "The {} sat down and took off <mask> hat."
people = sentences(hats, PEOPLE)
swapped = people.reshape(-1, 2, people.shape[1])[:, ::-1].reshape(people.shape)  # boy and girl change places
hat_hole = list(people[0]).index(MASK)
his, her = tokenizer.token_to_id("Ġhis"), tokenizer.token_to_id("Ġher")
yes = np.tile([her, his], len(PEOPLE) // 2)  # what the other of the pair should say
no = np.tile([his, her], len(PEOPLE) // 2)
gender = trace_cause(people, swapped, hat_hole, yes, no)

# %%
hat_tokens = tokenizer.encode(hats.format("boy")).tokens
person = hat_tokens.index("Ġboy")
hat_tokens[person] = "PERSON"
fig, ax = plt.subplots(figsize=(5.4, 3.3), layout="constrained")
image = grid(ax, gender, hat_tokens, hat_hole, vmin=0, vmax=1)
ax.get_xticklabels()[person].set(color=BLUE, weight="bold")
ax.set_title("His or her: half the way one layer earlier")
fig.colorbar(image, label="effect of one patched vector")
plt.show()

for i, name in enumerate(DEPTH):
    print(f"{name:14} at the person {gender[i, person]:.2f}, in the hole {gender[i, hat_hole]:.2f}")
assert gender[N - 1, hat_hole] > 0.4 > 0.3 > effect[N - 1, hole]

# %% [markdown]
# Half of it is in the hole after layer 2 already, where the name was still at home. The two facts take different ways
# through the same layers.
#
# What patching shows is a *cause*: change this vector, and the answer changes. It does not show that this is the only
# way, and the numbers of a patch need not add up to 1: when one way is blocked, another may take over.

# %% [markdown]
# ## 6. Try it
#
# **1. Steer.** The mean difference between the vectors of *girl, woman, queen, ...* and those of *boy, man, king, ...* is a
# direction in the stream. Take it after layer 0 at the person, and add it to a sentence about a boy. What does the hole
# say?
#
# <details><summary>Answer</summary>
#
# It says *her*. One vector, added at one place, changes the answer, and it was made from other sentences.
#
# ```python
# with tinyroberta.trace(model, "encoder.layer.0") as trace:
#     model(people)
# at_person = trace["encoder.layer.0"].reshape(*people.shape, -1)[:, person]  # (B, D)
# direction = (at_person[3::2] - at_person[2::2]).mean(0)  # without the first pair, boy and girl
# boy = people[:1]
#
# def steer(_name, x):  # (S, D) -> same
#     x[person] += direction
#     return x
#
# for name, replace in [("as it is", None), ("steered", {"encoder.layer.0": steer})]:
#     p = softmax(in_hole(boy, hat_hole, replace))[0]
#     print(f"{name:9} his {p[his]:.0%}, her {p[her]:.0%}")
#     assert (p[her] > p[his]) == (replace is not None)
# ```
# </details>

# %% [markdown]
# **2. A name it does not copy.** Try *Washington*, which is one token too. Does the look-up fail, or does something
# else? (Hint: `look_up` measures two things.)
#
# <details><summary>Answer</summary>
#
# Head 3.0 still finds the place, but the word does not come out on top: *Washington* after "Mr." has little support
# from the rest of the model. Finding and answering are two things.
#
# ```python
# names_before = named
# named = sentences(template, ["Washington"] * len(NAMES))
# share, _ = look_up(None)
# p = softmax(in_hole(named[:1], hole))[0]
# print(f"3.0 reads it with {share:.0%}, and its probability is {p[tokenizer.token_to_id('ĠWashington')]:.1%}")
# assert share > 0.5 > 0.2 > p[tokenizer.token_to_id("ĠWashington")]
# named = names_before
# ```
# </details>

# %% [markdown]
# **3. Patch two.** After layer 2, the name's own place carries most of its effect, and the hole a little. Do the two
# together make 1? Think about which of the other places could hold the rest.
#
# <details><summary>Answer</summary>
#
# Nearly: after layer 2 the name is in these two places, and what is left over is within a few hundredths.
#
# ```python
# with tinyroberta.trace(model, STATES[3]) as trace:
#     model(other)
# vectors = trace[STATES[3]].reshape(*other.shape, -1)
# logits = in_hole(named, hole, patched(STATES[3], [place, hole], vectors))
# both = moved(logits, start, end, np.roll(NAME_IDS, -1), NAME_IDS)
# print(f"both {both:.2f}; alone {effect[3, place]:.2f} and {effect[3, hole]:.2f}")
# assert abs(both - 1) < 0.1
# ```
# </details>

# %% [markdown]
# ## Where to read next
#
# - [From NumPy to machine code](05_from_numpy_to_machine_code.ipynb): the same operations, and what makes them fast.
# - [`tinyroberta/tap.py`](../tinyroberta/tap.py): everything that can be recorded and replaced.
#
# Papers: [Interpreting GPT: the logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens),
# [Locating and editing factual associations in GPT](https://arxiv.org/abs/2202.05262), [In-context learning and induction
# heads](https://arxiv.org/abs/2209.11895).

"""Train the embedded model's heads: what it can do beside filling masks, a folder of tinyroberta/demo each.

    python tools/train_heads.py DATA WORK [--tasks sentiment entities ...] [--minutes 3] [--export tinyroberta/demo]

DATA holds what the lessons below read: labelled/vader, labelled/wnut17, labelled/restaurant8k, labelled/xquad and books.txt.xz.
WORK keeps what each task learned and its scores; Ctrl-C ends the training of one, and what was best is kept. --export writes
them: config.json, update.safetensors and the card. --minutes 0 trains nothing and writes what WORK has.
Needs torch, transformers, tokenizers, safetensors, numpy.

Every task starts from the embedded masked language model, whose word and position embeddings stay as they are. Of the encoder a
task learns its norms and biases whole and its matrices by a low-rank update, W + B A (LoRA, Hu et al. 2021), with a head of its
own. The causal model learns three layers whole. What is stored is the nearest update of a smaller rank, in bfloat16, which is the
arithmetic of training too: 0.6 to 2.8 MB a task.
"""

import argparse
import functools
import html
import json
import math
import os
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from demo_corpus import HELD_OUT_ONE_IN, books, paragraphs
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call
from train_demo import BOS, EOS, PAD, CrossEntropy, write_atomically

BASE = Path(__file__).parents[1] / "tinyroberta" / "demo"
PREFIX = "roberta_prelayernorm."
WORDS = PREFIX + "embeddings.word_embeddings.weight"
LENGTH = 256
RATE, WARM_UP, WEIGHT_DECAY = 1e-3, 0.05, 0.01
DEV_EVERY = 1 / 6  # of a task's time
IGNORED = -100  # a place that no loss is taken of
SEED = 17

Batch = dict[str, Tensor]
Scores = dict[str, float]
Model = Callable[..., Any]  # what transformers' model gives for a batch's input_ids and attention_mask


class Lesson(NamedTuple):
    """The data of a task: batches without end, what is to be made smaller, and scores on texts that were held out."""

    batches: Iterator[Batch]
    loss: Callable[[Model, Batch], Tensor]
    score: Callable[[Model, str], Scores]  # of "dev", by whose first score training keeps its best state, or of "test"
    baseline: Scores  # on "test"
    facts: dict[str, Any]  # what the card says of the data


class Task(NamedTuple):
    """How a task is taught: transformers' class, what its config.json adds to the base's, its ranks and its time."""

    cls: str
    settings: dict[str, Any]
    rank: int | None  # of what is learned; None: all is learned whole
    kept: int  # the rank of what is stored
    dropout: float  # none where a text never comes twice
    minutes: float
    lesson: Callable[[Path, Tokenizer], Lesson]
    card: str


# Texts to batches.


def collate(rows: list[list[int]]) -> Batch:  # -> ids and mask (B, S)
    ids = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy((ids != PAD).astype(np.int64))}


def encoded(tokenizer: Tokenizer, texts: list[Any]) -> Batch:
    """Texts, or pairs of them, cut at LENGTH tokens."""
    return collate([encoding.ids for encoding in tokenizer.encode_batch(texts)])


def shuffled(random: np.random.Generator, lengths: list[int], size: int) -> Iterator[np.ndarray]:
    """The indices of a batch, without end: texts of like lengths together, every text once before any comes again."""
    lengths = np.array(lengths)
    while True:
        order = random.permutation(len(lengths))
        chunks = [np.sort(order[start : start + 16 * size]) for start in range(0, len(order), 16 * size)]
        for chunk in chunks:
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            parts = [chunk[start : start + size] for start in range(0, len(chunk), size)]
            yield from (parts[index] for index in random.permutation(len(parts)))


def in_parts(items: list[Any], size: int = 64) -> Iterator[list[Any]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))


# Sentiment.

SENTIMENTS, THRESHOLD = ("NEGATIVE", "NEUTRAL", "POSITIVE"), 0.5  # of a mean rating from -4 to 4


def sentiment(data: Path, tokenizer: Tokenizer) -> Lesson:
    parts: dict[str, list[tuple[str, int]]] = defaultdict(list)
    random = np.random.default_rng(SEED)
    for path in sorted((data / "labelled" / "vader").rglob("*_GroundTruth.txt")):
        documents: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, rating, text = line.split("\t", 2)
            label = 1 + (float(rating) > THRESHOLD) - (float(rating) < -THRESHOLD)
            documents[name.split("_")[0]].append((html.unescape(text), label))
        for number, index in enumerate(random.permutation(len(documents))):  # whole reviews and editorials are held out
            part = {0: "test", 1: "dev"}.get(number % 10, "train")
            parts[part] += list(documents.values())[index]
    rows = [encoding.ids for encoding in tokenizer.encode_batch([text for text, _ in parts["train"]])]
    labels = np.array([label for _, label in parts["train"]])

    def batches() -> Iterator[Batch]:
        for chosen in shuffled(random, list(map(len, rows)), 64):
            yield collate([rows[index] for index in chosen]) | {"labels": torch.from_numpy(labels[chosen])}

    def loss(model: Model, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch).logits.float(), batch["labels"])

    def scores(found: np.ndarray, truth: np.ndarray) -> Scores:
        hits = [(2 * np.sum((found == k) & (truth == k)) / max(1, np.sum(found == k) + np.sum(truth == k))) for k in range(3)]
        return {"accuracy": float(np.mean(found == truth)), "macro F1": float(np.mean(hits))}

    def score(model: Model, part: str) -> Scores:
        found = [
            model(encoded(tokenizer, [text for text, _ in some])).logits.argmax(-1).numpy()
            for some in in_parts(sorted(parts[part], key=lambda pair: len(pair[0])))
        ]
        return scores(np.concatenate(found), np.array([label for _, label in sorted(parts[part], key=lambda p: len(p[0]))]))

    truth = np.array([label for _, label in parts["test"]])
    most = np.full(len(truth), np.bincount(labels).argmax())
    facts = {"train": len(rows), "test": len(truth)}
    return Lesson(
        batches(), loss, score, {f"{name}, always {SENTIMENTS[most[0]]}": s for name, s in scores(most, truth).items()}, facts
    )


# Entities.

KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{start}-{kind}" for kind in KINDS for start in "BI"))
NO_SPACE_BEFORE = re.compile(r"[.,:;!?)\]}%…]+|n't|'\w*")
Words = list[tuple[str, str]]


def read_conll(path: Path) -> list[Words]:
    sentences: list[Words] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            word, tag = line.split("\t")[:2]
            sentences[-1].append((word, tag.strip()))
        elif sentences[-1]:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def joined(sentence: Words) -> tuple[str, list[int]]:
    """A text as people write it, and where its words begin: marks stand at the word before them."""
    text, starts = "", []
    for word, _ in sentence:
        text += "" if not text or NO_SPACE_BEFORE.fullmatch(word) or text.endswith(("(", "@", "#")) else " "
        starts.append(len(text))
        text += word
    return text, starts


def tagged(tokenizer: Tokenizer, sentence: Words) -> tuple[list[int], list[int], dict[int, int]]:
    """Ids, a tag for each (a word's first tag, then its I-), and {word: the token that it begins with}."""
    text, starts = joined(sentence)
    encoding = tokenizer.encode(text)
    tags, first = [], {}
    for place, (start, end) in enumerate(encoding.offsets):
        if start == end:
            tags.append(IGNORED)
            continue
        word = int(np.searchsorted(starts, start, side="right")) - 1
        tag = sentence[word][1]
        tags.append(TAGS.index(tag if word not in first else tag.replace("B-", "I-")))
        first.setdefault(word, place)
    return encoding.ids, tags, first


def spans_of(tags: list[str]) -> set[tuple[int, int, str]]:
    """Entities as (first word, last word, kind); an I- that follows no tag of its kind begins one."""
    found, start = set(), 0
    for index, tag in enumerate([*tags, "O"]):
        before = tags[index - 1] if index else "O"
        goes_on = tag.startswith("I-") and before != "O" and before[2:] == tag[2:]
        if before != "O" and not goes_on:
            found.add((start, index - 1, before[2:]))
        if not goes_on:
            start = index
    return found


def entity_scores(found: list[list[str]], truth: list[Words]) -> Scores:
    hits = given = wanted = 0
    for tags, sentence in zip(found, truth, strict=True):
        mine, theirs = spans_of(tags), spans_of([tag for _, tag in sentence])
        hits, given, wanted = hits + len(mine & theirs), given + len(mine), wanted + len(theirs)
    return {"F1": 2 * hits / max(1, given + wanted), "precision": hits / max(1, given), "recall": hits / max(1, wanted)}


def entities(data: Path, tokenizer: Tokenizer) -> Lesson:
    folder = data / "labelled" / "wnut17"
    files = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    parts = {part: read_conll(folder / name) for part, name in files.items()}
    random = np.random.default_rng(SEED)
    rows = [tagged(tokenizer, sentence)[:2] for sentence in parts["train"]]

    def batches() -> Iterator[Batch]:
        for chosen in shuffled(random, [len(ids) for ids, _ in rows], 32):
            batch = collate([rows[index][0] for index in chosen])
            labels = torch.full(batch["input_ids"].shape, IGNORED)
            for row, index in zip(labels, chosen, strict=True):
                row[: len(rows[index][1])] = torch.tensor(rows[index][1])
            yield batch | {"labels": labels}

    def loss(model: Model, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch).logits.float().flatten(0, 1), batch["labels"].flatten())

    def score(model: Model, part: str) -> Scores:
        found = []
        for some in in_parts(parts[part]):
            cases = [tagged(tokenizer, sentence) for sentence in some]
            best = model(collate([ids for ids, _, _ in cases])).logits.argmax(-1).numpy()
            for row, (_, _, first), sentence in zip(best, cases, some, strict=True):
                found.append([TAGS[row[first[word]]] if word in first else "O" for word in range(len(sentence))])
        return entity_scores(found, parts[part])

    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in (pair for sentence in parts["train"] for pair in sentence):
        seen[word][tag] += 1
    most = [[seen[word].most_common(1)[0][0] if word in seen else "O" for word, _ in sentence] for sentence in parts["test"]]
    baseline = {f"{name}, each word's most frequent tag": value for name, value in entity_scores(most, parts["test"]).items()}
    facts = {part: len(sentences) for part, sentences in parts.items()}
    return Lesson(batches(), loss, score, baseline, facts)


# Answers.

ASKED = {
    "people": ("How many people?", "How many people are coming?", "For how many people is the table?", "How large is the party?"),
    "time": ("What time?", "At what time is the booking?", "When is the table booked for?", "What time will they come?"),
    "date": ("Which day?", "On what date is the booking?", "What is the date?", "For which day is the table?"),
    "first_name": ("What is the first name?", "What is the guest's first name?"),
    "last_name": ("What is the last name?", "What is the guest's last name?", "What is the surname?"),
}
NAME = r"(?:(?:Mr|Mrs|Miss|Dr|Sir|Lady|Lord|Captain|Aunt|Uncle)\.? )?[A-Z][a-z]+(?: [A-Z][a-z]+)?"
DONE = (
    r"\w{2,}ed|said|went|came|was|had|took|gave|made|saw|knew|told|sat|stood|ran|wrote|thought|found|felt|left|brought|kept|held|fell|"
    r"spoke|rose|drew|threw|got|let|set|laid|put|heard|read|met|sent|bought|paid|led|lost|won|sang|rode|drove|ate|drank|slept|began"
)
WHO = re.compile(rf"({NAME}) ((?:{DONE}) [^.;:?!\"“”]{{8,90}})")
GONE = {
    "went": "go", "came": "come", "lived": "live", "stood": "stand", "sat": "sit", "arrived": "arrive", "stayed": "stay",
    "died": "die", "walked": "walk", "rode": "ride", "lay": "lie", "ran": "run", "stopped": "stop", "hurried": "hurry",
}  # fmt: skip
WHERE = re.compile(
    rf"\b({NAME}|[Tt]he [a-z]+) ({'|'.join(GONE)}|was)\b[^.;:?!,\"“”]{{0,40}}? (?:in|at|to|into|near|on) "
    r"((?:the |a |an |his |her )[a-z]+(?: [a-z]+)?|[A-Z][a-z]+(?: [A-Z][a-z]+)?)(?=[.,;])"
)
NO_NAME = re.compile(  # what begins a sentence as often as a name does
    r"(?:The|This|That|There|They|Then|These|Those|What|When|Where|Who|Why|How|And|But|For|He|She|It|You|We|His|Her|My|Our|Their|"
    r"All|One|Some|Such|So|No|Not|Nothing|Nobody|Everybody|Everything|If|In|At|On|As|Here|Now|Yes)\b"
)


class Question(NamedTuple):
    question: str
    context: str
    answer: tuple[int, int] | None  # characters of the context; None where it does not say


def restaurant(path: Path, random: np.random.Generator, unanswered: float) -> Iterator[Question]:
    for turn in json.loads(path.read_text(encoding="utf-8")):
        text = turn["userInput"]["text"]
        asked = turn.get("context", {}).get("requestedSlots", [])
        spans = {}
        for label in turn.get("labels", []):
            span = label.get("valueSpan", {})
            spans[label["slot"]] = (span.get("startIndex", 0), span.get("endIndex", len(text)))
        for slot, span in spans.items():
            yield Question(str(random.choice(ASKED[slot])), text, span)
        others = [slot for slot in ASKED if slot not in spans and slot not in asked]
        if others and random.random() < unanswered:
            yield Question(str(random.choice(ASKED[str(random.choice(others))])), text, None)


def xquad(path: Path) -> Iterator[tuple[int, Question]]:
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                start, text = asked["answers"][0]["answer_start"], asked["answers"][0]["text"]
                yield number, Question(asked["question"], paragraph["context"], (start, start + len(text)))


def made_questions(library: list["Book"], random: np.random.Generator, count: int) -> list[Question]:
    """Questions with `Who` and `Where` made from sentences of the books, each asked of the sentences around it."""
    found: list[Question] = []
    while len(found) < count:
        book = library[random.integers(len(library))]
        index = int(random.integers(4, len(book) - 4))
        sentence = book[index].text
        if who := WHO.match(sentence):
            if NO_NAME.match(who[1]):
                continue
            question, answer = f"Who {who[2]}?", who.span(1)
        elif where := WHERE.search(sentence):
            if NO_NAME.match(where[1]) and not where[1].startswith("The "):
                continue
            subject = where[1][0].lower() + where[1][1:] if where[1].lower().startswith("the ") else where[1]
            question = f"Where was {subject}?" if where[2] == "was" else f"Where did {subject} {GONE[where[2]]}?"
            answer = where.span(3)
        else:
            continue
        before, after = random.integers(0, 4, 2)
        start = " ".join(part.text for part in book[index - before : index])
        start += " " if start else ""
        context = start + " ".join(part.text for part in book[index : index + 1 + after])
        found.append(Question(question, context, (answer[0] + len(start), answer[1] + len(start))))
    return found


class Window(NamedTuple):
    """A question with a part of its context, as much as LENGTH tokens hold."""

    ids: list[int]
    readable: list[int]  # the places of the context
    offsets: list[tuple[int, int]]
    start: int  # of the answer, a place; 0 where it is not in here
    end: int


def windows(tokenizer: Tokenizer, asked: Question) -> list[Window]:
    encoding = tokenizer.encode(asked.question, asked.context)
    found = []
    for part in (encoding, *encoding.overflowing):
        readable = [place for place, sequence in enumerate(part.sequence_ids) if sequence == 1]
        start = end = 0
        if asked.answer is not None:
            inside = [p for p in readable if part.offsets[p][1] > asked.answer[0] and part.offsets[p][0] < asked.answer[1]]
            whole = inside and part.offsets[inside[0]][0] <= asked.answer[0] and part.offsets[inside[-1]][1] >= asked.answer[1]
            start, end = (inside[0], inside[-1]) if whole else (0, 0)
        found.append(Window(part.ids, readable, part.offsets, start, end))
    return found


def best_span(window: Window, starts: np.ndarray, ends: np.ndarray, most: int = 30) -> tuple[float, tuple[int, int]]:
    """The likeliest span of a window's context of at most so many tokens: its score over no answer's, its characters."""
    places = np.array(window.readable)
    scores = starts[places][:, None] + ends[places][None, :]
    apart = np.arange(len(places))[None, :] - np.arange(len(places))[:, None]
    scores[(apart < 0) | (apart >= most)] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    where = (window.offsets[places[first]][0], window.offsets[places[last]][1])
    return float(scores[first, last] - starts[0] - ends[0]), where


def plain(text: str) -> list[str]:  # SQuAD's normalisation
    return [word for word in re.sub(r"[^\w\s]", "", text.lower()).split() if word not in ("a", "an", "the")]


def overlap(found: str, truth: str) -> tuple[float, float]:  # -> exact match, F1
    a, b = plain(found), plain(truth)
    common = sum((Counter(a) & Counter(b)).values())
    return float(a == b), 2 * common / max(1, len(a) + len(b))


def answers(data: Path, tokenizer: Tokenizer) -> Lesson:
    random = np.random.default_rng(SEED)
    tokenizer.enable_truncation(LENGTH, stride=64, strategy="only_second")
    folder = data / "labelled"
    booked = list(restaurant(folder / "restaurant8k" / "train_0.json", random, 0.3))
    random.shuffle(booked)
    read = list(xquad(folder / "xquad" / "xquad.en.json"))
    library = read_books(data / "books.txt.xz")
    made, held = made_questions(library.train, random, 8_000), made_questions(library.test, random, 200)
    found = list(restaurant(folder / "restaurant8k" / "test.json", random, 0.3))
    tests = {
        "bookings": [found[index] for index in random.permutation(len(found))[:600]],
        "books": held,
        "xquad": [asked for number, asked in read if number % 5 == 0],
    }
    dev = {"bookings": booked[:300], "books": made_questions(library.dev, random, 100)}
    dev["xquad"] = [asked for number, asked in read if number % 5 == 1][:50]
    sets = {"bookings": booked[400:], "books": made, "xquad": [asked for number, asked in read if number % 5 > 1]}
    lessons = [
        window
        for name, part in sets.items()
        for asked in part * (4 if name == "xquad" else 1)
        for window in windows(tokenizer, asked)
    ]
    kept = [window for window in lessons if window.end or random.random() < 0.5]

    def batches() -> Iterator[Batch]:
        for chosen in shuffled(random, [len(window.ids) for window in kept], 32):
            some = [kept[index] for index in chosen]
            ends = torch.tensor([[window.start, window.end] for window in some])
            yield collate([window.ids for window in some]) | {"ends": ends}

    def masked(output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        padding = batch["attention_mask"] == 0
        return tuple(x.float().masked_fill(padding, -1e4) for x in (output.start_logits, output.end_logits))

    def loss(model: Model, batch: Batch) -> Tensor:
        starts, ends = masked(model(batch), batch)
        return F.cross_entropy(starts, batch["ends"][:, 0]) + F.cross_entropy(ends, batch["ends"][:, 1])

    def score(model: Model, part: str) -> Scores:
        result: Scores = {}
        for name, questions in (tests if part == "test" else dev).items():
            parts = [(index, window) for index, asked in enumerate(questions) for window in windows(tokenizer, asked)]
            best: dict[int, tuple[float, tuple[int, int]]] = {}
            for some in in_parts(sorted(parts, key=lambda pair: len(pair[1].ids)), 32):
                batch = collate([window.ids for _, window in some])
                output = model(batch)
                ends = (output.start_logits.float().numpy(), output.end_logits.float().numpy())
                for row, (index, window) in enumerate(some):
                    span = best_span(window, ends[0][row], ends[1][row])
                    best[index] = max(best.get(index, span), span)
            pairs = [
                overlap(asked.context[slice(*best[index][1])], asked.context[slice(*asked.answer)])
                for index, asked in enumerate(questions)
                if asked.answer
            ]
            exact, f1 = np.mean(pairs, 0)
            result |= {f"F1, {name}": float(f1), f"exact, {name}": float(exact)}
            told = [(best[index][0] > 0) == (asked.answer is not None) for index, asked in enumerate(questions)]
            if any(asked.answer is None for asked in questions):
                result |= {f"answerable or not, {name}": float(np.mean(told))}
        if part == "dev":
            result = {"F1, mean": float(np.mean([value for name, value in result.items() if name.startswith("F1")]))} | result
        return result

    baseline: Scores = {}
    for name, questions in tests.items():
        whole = np.mean([overlap(q.context, q.context[slice(*q.answer)]) for q in questions if q.answer], 0)
        baseline |= {f"F1, {name}, the whole text": float(whole[1]), f"exact, {name}, the whole text": float(whole[0])}
    answered = np.mean([asked.answer is not None for asked in tests["bookings"]])
    baseline |= {"answerable or not, bookings, always answerable": float(answered)}
    facts = {name: len(part) for name, part in sets.items()}
    return Lesson(batches(), loss, score, baseline, facts)


# Books: sentences, in order.


class Sentence(NamedTuple):
    text: str
    last: bool  # of its paragraph


Book = list[Sentence]


class Library(NamedTuple):
    train: list[Book]
    dev: list[Book]
    test: list[Book]


BETWEEN = re.compile(
    r"(?<![A-Z]\.)(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)(?<!Messrs\.)((?:(?<=[.!?])|(?<=[.!?][\"'”’)]))) +(?=[\"'“‘(]*[A-Z])"
)
CHARACTERS = (2_000, 60_000)  # of each book: what comes before is often a title page and a list of chapters


def sentences_of(text: str) -> Book:
    found = []
    for paragraph in paragraphs(text).split("\n"):
        if paragraph.startswith(("#", "|", ">")):
            continue
        parts = [part for part in BETWEEN.split(re.sub(r"[*_]", "", paragraph)) if part]
        found += [Sentence(part, place == len(parts) - 1) for place, part in enumerate(parts)]
    return found


@functools.cache
def read_books(path: Path) -> Library:
    """The books' sentences; those that the masked model has not seen either are held out."""
    texts = [text for text in books(path) if paragraphs(text[:10_000])]
    shelves: dict[bool, list[Book]] = {True: [], False: []}
    for count, text in enumerate(texts, 1):
        held = count % HELD_OUT_ONE_IN == 0
        book = sentences_of(text[CHARACTERS[0] : (None if held else CHARACTERS[1])])
        if len(book) > 200:
            shelves[held].append(book)
    return Library(shelves[False], shelves[True][1::2], shelves[True][::2])


def proper(sentence: Sentence) -> bool:
    return 20 <= len(sentence.text) <= 240


# Choices.


class Choice(NamedTuple):
    context: str
    candidates: list[str]
    right: int


def draw_choice(random: np.random.Generator, library: list[Book]) -> Choice:
    """One to three sentences, the one that follows, and three from elsewhere in the same book."""
    book = library[random.integers(len(library))]
    while True:
        index = int(random.integers(3, len(book)))
        others = [int(other) for other in random.integers(0, len(book), 3)]
        if all(proper(book[place]) for place in (index - 1, index, *others)) and all(abs(other - index) > 5 for other in others):
            break
    before = [sentence.text for sentence in book[index - int(random.integers(1, 4)) : index]]
    while sum(map(len, before)) > 320:
        before = before[1:]
    right = int(random.integers(4))
    candidates = [book[other].text for other in others]
    candidates.insert(right, book[index].text)
    return Choice(" ".join(before), candidates, right)


def choices(data: Path, tokenizer: Tokenizer) -> Lesson:
    library = read_books(data / "books.txt.xz")
    random, fixed = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    parts = {
        "dev": [draw_choice(fixed, library.dev) for _ in range(160)],
        "test": [draw_choice(fixed, library.test) for _ in range(500)],
    }

    def batch_of(some: list[Choice]) -> Batch:
        batch = encoded(tokenizer, [(choice.context, candidate) for choice in some for candidate in choice.candidates])
        return {name: x.view(len(some), 4, -1) for name, x in batch.items()}

    def batches() -> Iterator[Batch]:
        while True:
            some = [draw_choice(random, library.train) for _ in range(24)]
            yield batch_of(some) | {"labels": torch.tensor([choice.right for choice in some])}

    def loss(model: Model, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch).logits.float(), batch["labels"])

    def score(model: Model, part: str) -> Scores:
        hits = [
            found == choice.right
            for some in in_parts(parts[part], 16)
            for found, choice in zip(model(batch_of(some)).logits.argmax(-1).tolist(), some, strict=True)
        ]
        return {"accuracy": float(np.mean(hits))}

    def shared(choice: Choice) -> int:
        around = set(plain(choice.context))
        return int(np.argmax([len(around & set(plain(c))) / math.sqrt(1 + len(set(plain(c)))) for c in choice.candidates]))

    baseline = {
        "accuracy, a choice at random": 0.25,
        "accuracy, most words shared with the text": float(np.mean([shared(choice) == choice.right for choice in parts["test"]])),
    }
    return Lesson(batches(), loss, score, baseline, {"books": len(library.train), "held": len(library.dev + library.test)})


# Sentence vectors.


def mean_vectors(rows: Tensor, mask: Tensor) -> Tensor:  # (B, S, D), (B, S) -> (B, D) of length 1
    return F.normalize((rows * mask[..., None]).sum(1).float() / mask.sum(1, keepdim=True), dim=-1)


TEMPERATURE = 0.05


def sentences(data: Path, tokenizer: Tokenizer) -> Lesson:
    library = read_books(data / "books.txt.xz")
    random, fixed = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)

    def draw(random: np.random.Generator, shelf: list[Book], count: int) -> tuple[list[str], list[str]]:
        """Sentences and the ones that follow them."""
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            book = shelf[random.integers(len(shelf))]
            first, second = book[(index := int(random.integers(len(book) - 1)))], book[index + 1]
            if proper(first) and proper(second):
                pairs.append((first.text, second.text))
        return tuple(zip(*pairs, strict=True))

    parts = {"dev": draw(fixed, library.dev, 500), "test": draw(fixed, library.test, 1000)}

    def batches() -> Iterator[Batch]:
        while True:
            first, second = draw(random, library.train, 192)
            yield encoded(tokenizer, [*first, *second])

    def loss(model: Model, batch: Batch) -> Tensor:
        first, second = mean_vectors(model(batch).last_hidden_state, batch["attention_mask"]).chunk(2)
        alike, truth = first @ second.T / TEMPERATURE, torch.arange(len(first))
        return (F.cross_entropy(alike, truth) + F.cross_entropy(alike.T, truth)) / 2

    def found(vectors: Callable[[Batch], Tensor], part: str) -> Scores:
        first, second = (
            torch.cat([vectors(encoded(tokenizer, some)) for some in in_parts(list(texts))]) for texts in parts[part]
        )
        alike = first @ second.T
        rank = (alike > alike.diagonal()[:, None]).sum(1).double()
        return {
            "MRR": float((1 / (rank + 1)).mean()),
            "top 1": float((rank < 1).double().mean()),
            "top 10": float((rank < 10).double().mean()),
        }

    def score(model: Model, part: str) -> Scores:
        return found(lambda batch: mean_vectors(model(batch).last_hidden_state, batch["attention_mask"]), part)

    base = load_file(BASE / "model.safetensors")
    untaught = transformers.RobertaPreLayerNormModel(configuration("Model", {}), add_pooling_layer=False).eval()
    untaught.load_state_dict({name.removeprefix(PREFIX): x.float() for name, x in base.items() if name.startswith(PREFIX)})
    means = {
        "the mean of the word embeddings": lambda batch: mean_vectors(
            base[WORDS].float()[batch["input_ids"]], batch["attention_mask"]
        ),
        "the masked model's mean": lambda batch: mean_vectors(untaught(**batch).last_hidden_state, batch["attention_mask"]),
    }
    with torch.no_grad():
        baseline = {f"{name}, {what}": value for what, mean in means.items() for name, value in found(mean, "test").items()}
    return Lesson(batches(), loss, score, baseline, {"books": len(library.train), "held": len(library.dev + library.test)})


# A causal model.


def causal(data: Path, tokenizer: Tokenizer) -> Lesson:
    library = read_books(data / "books.txt.xz")
    random, fixed = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    tokenizer.no_truncation()

    def draw(random: np.random.Generator, shelf: list[Book], rows: int, length: int) -> Batch:
        """Rows of as many sentences that follow one another as fit."""
        texts = []
        for _ in range(rows):
            book = shelf[random.integers(len(shelf))]
            index, text = int(random.integers(len(book) - 1)), ""
            while index < len(book) and len(text) < 5 * length:
                text += book[index].text + ("\n" if book[index].last else " ")
                index += 1
            texts.append(text.rstrip())
        found = []
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            ids = [BOS, *encoding.ids, EOS]
            found.append(ids[:length])
        return collate(found)

    parts = {
        "dev": [draw(fixed, library.dev, 64, 128) for _ in range(2)],
        "test": [draw(fixed, library.test, 64, 128) for _ in range(8)],
    }

    def batches() -> Iterator[Batch]:
        while True:
            length = int(random.choice((64, 128, 256), p=(0.3, 0.6, 0.1)))
            yield draw(random, library.train, 4096 // length, length)

    def next_tokens(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:  # -> (M, V), (M,)
        ids, mask = batch["input_ids"], batch["attention_mask"][:, 1:].bool()
        return model(batch).logits[:, :-1][mask], ids[:, 1:][mask]

    def loss(model: Model, batch: Batch) -> Tensor:
        return CrossEntropy.apply(*next_tokens(model, batch))

    def score(model: Model, part: str) -> Scores:
        total = hits = count = 0
        for batch in parts[part]:
            scores, truth = next_tokens(model, batch)
            total += F.cross_entropy(scores.float(), truth, reduction="sum").item()
            hits, count = hits + (scores.argmax(-1) == truth).sum().item(), count + len(truth)
        return {"nats a token": total / count, "perplexity": math.exp(total / count), "top 1": hits / count}

    counts = torch.ones(8192, dtype=torch.float64)
    for _ in range(60):
        batch = draw(fixed, library.train, 64, 128)
        counts += torch.bincount(batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()], minlength=len(counts))
    unigram = (counts / counts.sum()).log()
    truth = torch.cat([batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()] for batch in parts["test"]])
    nats = -unigram[truth].mean().item()
    baseline = {"nats a token": nats, "perplexity": math.exp(nats), "top 1": (truth == unigram.argmax()).double().mean().item()}
    baseline = {f"{name}, the most frequent tokens (unigram)": value for name, value in baseline.items()}
    return Lesson(batches(), loss, score, baseline, {"books": len(library.train), "held": len(library.dev + library.test)})


# Teaching.


def configuration(cls: str, settings: dict[str, Any], dropout: float = 0.0) -> Any:
    content = json.loads((BASE / "config.json").read_text()) | settings
    content |= {"architectures": [f"RobertaPreLayerNorm{cls}"]}
    content |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return transformers.RobertaPreLayerNormConfig(**content)


def beginning(task: Task, model: torch.nn.Module, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a task learns, as it begins: the base's, a head of its own, and updates that change nothing yet."""
    own: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        name = name if task.cls != "Model" else PREFIX + name
        if "embeddings." in name or name.startswith("lm_head.decoder."):
            continue
        start = base.get(name, value).float()
        if task.rank is None or name not in base or value.ndim == 1:
            own[name] = start.clone()
        else:
            stem, (out, into) = name.removesuffix("weight"), value.shape
            own[f"{stem}lora_A.weight"] = torch.randn(task.rank, into) / math.sqrt(into)
            own[f"{stem}lora_B.weight"] = torch.zeros(out, task.rank)
    return {name: value.requires_grad_() for name, value in own.items()}


def merged(base: dict[str, Tensor], own: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a task's model, each rounded to bfloat16: the base's, what it learned whole, and W + B A."""
    tensors = base | {name: value for name, value in own.items() if ".lora_" not in name}
    for name, down in own.items():
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            tensors[f"{stem}weight"] = base[f"{stem}weight"] + own[f"{stem}lora_B.weight"] @ down
    return {name: value.to(torch.bfloat16).to(dtype) for name, value in tensors.items()}


def low_rank(base: dict[str, Tensor], own: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What a task learned, each matrix's difference from the base's as the nearest B A of a rank (Eckart and Young 1936)."""
    whole = merged(base, own, torch.float32)
    kept = {}
    for name, value in own.items():
        stem = name.removesuffix("weight").removesuffix("lora_A.").removesuffix("lora_B.")
        matrix = f"{stem}weight"
        if ".lora_B" in name:
            continue
        if matrix not in base or base[matrix].ndim == 1 or not name.endswith("weight"):
            kept[name] = value
            continue
        difference = own[f"{stem}lora_B.weight"] @ value if ".lora_A" in name else whole[matrix] - base[matrix]
        left, sizes, right = torch.linalg.svd(difference, full_matrices=False)
        kept[f"{stem}lora_A.weight"] = sizes[:rank].sqrt()[:, None] * right[:rank]
        kept[f"{stem}lora_B.weight"] = left[:, :rank] * sizes[:rank].sqrt()
    return kept


def runner(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Model:
    headless = type(model).__name__.endswith("Model")
    named = {name.removeprefix(PREFIX) if headless else name: value for name, value in tensors.items()}
    if model.config.is_decoder:
        named |= {"lm_head.decoder.bias": named["lm_head.bias"], "lm_head.decoder.weight": named[WORDS]}
    known = dict(model.named_parameters(remove_duplicate=False))
    named = {name: value for name, value in named.items() if name in known}

    def run(batch: Batch) -> Any:
        return functional_call(model, named, kwargs={name: batch[name] for name in ("input_ids", "attention_mask")})

    return run


def schedule(share: float) -> float:
    return share / WARM_UP if share < WARM_UP else max(0.0, (1 - share) / (1 - WARM_UP))


def teach(name: str, task: Task, data: Path, work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    lesson = task.lesson(data, tokenizer)
    print(name, lesson.facts, lesson.baseline, flush=True)
    base = {key: value.float() for key, value in load_file(BASE / "model.safetensors").items()}
    extra = {"add_pooling_layer": False} if task.cls == "Model" else {}
    config = configuration(task.cls, task.settings, task.dropout)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"RobertaPreLayerNorm{task.cls}")(config, **extra)
    own = beginning(task, model, base)
    optimizer = torch.optim.AdamW(list(own.values()), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)

    def score(values: dict[str, Tensor], part: str, dtype: torch.dtype) -> Scores:
        model.eval()
        with torch.no_grad():
            scores = lesson.score(runner(model, merged(base, values, dtype)), part)
        model.train()
        return scores

    lower = task.cls == "ForCausalLM"
    seconds, step, seen, losses, next_dev = 0.0, 0, 0, [], DEV_EVERY
    best, best_own = -math.inf, {}
    model.train()
    ended = []
    signal.signal(signal.SIGINT, lambda *_: ended.append(True))
    while (share := seconds / (60 * minutes)) < 1 and not ended:
        began = time.process_time()
        batch = next(lesson.batches)
        loss = lesson.loss(runner(model, merged(base, own, torch.bfloat16)), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(own.values()), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * schedule(share)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"{name}: the loss is not finite: lower the rates and start again")
        step, seen = step + 1, seen + int(batch["attention_mask"].sum())
        seconds += (time.process_time() - began) / torch.get_num_threads()  # on a machine that others use too, what was used
        if seconds / (60 * minutes) >= min(next_dev, 1) or ended:
            next_dev += DEV_EVERY
            scores = score(own, "dev", torch.bfloat16)
            told = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
            speed = f"{seen / seconds:,.0f} tokens/s"
            print(f"{name}: step {step}  {seconds / 60:.1f} min  loss {np.mean(losses[-50:]):.3f}  {told}  {speed}", flush=True)
            first = next(iter(scores.values())) * (-1 if lower else 1)
            if first > best:
                best, best_own = first, {key: value.detach().to(torch.bfloat16) for key, value in own.items()}
    if task.kept != task.rank:
        smaller = low_rank(base, {key: value.float() for key, value in best_own.items()}, task.kept)
        best_own = {key: value.to(torch.bfloat16) for key, value in smaller.items()}
    stored = {key: value.float() for key, value in best_own.items()}
    facts = {"scores": score(stored, "test", torch.float32), "baseline": lesson.baseline, "data": lesson.facts}
    facts |= {"minutes": seconds / 60, "steps": step, "tokens": seen}
    print(name, json.dumps(facts), flush=True)
    work.mkdir(parents=True, exist_ok=True)
    content = {key: value.contiguous() for key, value in best_own.items()}
    write_atomically(work / f"{name}.safetensors", lambda path: save_file(content, path, {"format": "pt"}))
    write_atomically(work / f"{name}.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))


def table(facts: dict[str, Any]) -> str:
    """The scores on held-out texts beside their baselines, in Markdown."""
    lines = ["| on held-out texts | this model | beside it |", "|---|---|---|"]

    def shown(name: str, value: float) -> str:
        return f"{value:.3f}" if name == "nats a token" else f"{value:.1f}" if name == "perplexity" else f"{value:.1%}"

    for name, value in facts["scores"].items():
        others = {key.removeprefix(f"{name}, "): x for key, x in facts["baseline"].items() if key.startswith(f"{name}, ")}
        beside = "; ".join(f"{shown(name, x)} ({what})" for what, x in others.items())
        lines.append(f"| {name} | {shown(name, value)} | {beside} |")
    return "\n".join(lines)


TASKS = {
    "sentiment": Task(
        "ForSequenceClassification",
        {"id2label": dict(enumerate(SENTIMENTS)), "label2id": {label: index for index, label in enumerate(SENTIMENTS)}},
        16,
        16,
        0.1,
        2,
        sentiment,
        """# Sentiment of a sentence

NEGATIVE, NEUTRAL or POSITIVE, for `text-classification`.

**Trained on** {train:,} tweets and sentences of film reviews, product reviews and editorials with the mean of 20 people's ratings
(VADER, C.J. Hutto and E. Gilbert 2014; MIT). POSITIVE is a mean above 0.5 on their scale from -4 to 4, NEGATIVE one below -0.5.
{test:,} sentences were held out for the scores and as many for the choice of the best state, reviews and editorials whole.""",
    ),
    "entities": Task(
        "ForTokenClassification",
        {"id2label": dict(enumerate(TAGS)), "label2id": {tag: index for index, tag in enumerate(TAGS)}},
        16,
        16,
        0.1,
        2.5,
        entities,
        """# Named entities

Persons, locations, groups, corporations, products and creative works, for `token-classification`: `B-` where one begins, `I-`
where it goes on, `O` elsewhere.

**Trained on** the {train:,} sentences of WNUT 2017, from social media (Derczynski et al. 2017; CC BY 4.0), words joined as people
write them; {dev:,} chose the best state and the {test:,} of its test, whose entities are rare on purpose, gave the scores. Whole
entities count, with their kind.""",
    ),
    "answers": Task(
        "ForQuestionAnswering",
        {},
        32,
        16,
        0.05,
        3,
        answers,
        """# Answers to questions about a text

The words of a text that answer a question, for `question-answering`.

**Trained on** {bookings:,} questions about what guests write to restaurants (made from the spans of RESTAURANTS-8K, Coope et al.
2020; CC BY 4.0), {books:,} questions with `Who` and `Where` that a pattern made from sentences of public-domain books, and
{xquad:,} questions about paragraphs of Wikipedia (XQuAD, Artetxe et al. 2020; CC BY-SA 4.0: this folder is a work derived from
it, under that licence too). Some questions about bookings have no answer in their text: `<s>` is theirs. Held out: the test of
RESTAURANTS-8K, books, and every fifth article of XQuAD.""",
    ),
    "choices": Task(
        "ForMultipleChoice",
        {},
        48,
        16,
        0.0,
        3,
        choices,
        """# Which sentence comes next

One of four, for `multiple-choice`.

**Trained on** {books} public-domain books: one to three sentences, the one that follows and three from elsewhere in the same
book. {held} books, which the masked model has not seen either, were held out.""",
    ),
    "sentences": Task(
        "Model",
        {},
        48,
        16,
        0.0,
        2.5,
        sentences,
        """# Sentence vectors

The mean of a text's rows, divided by its length, for `feature-extraction` and `embed`: sentences about like things have a large
product.

**Trained on** {books} public-domain books: a sentence and the one that follows it are alike, the other 191 of a batch are not
(InfoNCE, temperature 0.05). {held} books, which the masked model has not seen either, were held out; the scores say how often
a sentence finds the one that follows it among 1,000.""",
    ),
    "causal": Task(
        "ForCausalLM",
        {"is_decoder": True, "num_hidden_layers": 3},
        None,
        96,
        0.0,
        7,
        causal,
        """# A model that writes

The next token, for `text-generation`: three layers, begun from the masked model's first three.

**Trained on** {books} public-domain books. {held} books, which the masked model has not seen either, were held out.""",
    ),
}

LICENSES = {"answers": "cc-by-sa-4.0"}
HEADER = """---
license: {license}
language: en
library_name: tinyroberta
---
"""
FOOTER = """
**For** {minutes:.1f} minutes on {machine} ({tokens:,} tokens in {steps:,} steps) by `tools/train_heads.py`, from the embedded
masked language model, whose embeddings it shares. `update.safetensors` holds its head, its
norms and biases, and for each matrix W of the encoder lora_A and lora_B, of rank {kept}: its own is W + B A.

{table}

**Not for** facts, judgements or anything that matters: it is small, and it repeats the prejudices of its sources.
"""


def export(name: str, task: Task, work: Path, folder: Path, machine: str) -> None:
    facts = json.loads((work / f"{name}.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(load_file(work / f"{name}.safetensors"), folder / "update.safetensors", {"format": "pt"})
    (folder / "update.safetensors").chmod(0o644)
    content = json.loads((BASE / "config.json").read_text()) | task.settings
    content |= {"architectures": [f"RobertaPreLayerNorm{task.cls}"]}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    card = HEADER.format(license=LICENSES.get(name, "apache-2.0")) + task.card.format(**facts["data"]) + "\n"
    card += FOOTER.format(**facts | {"machine": machine, "table": table(facts), "kept": task.kept})
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--minutes", type=float, help="of training, for each task; else what TASKS says")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="what the cards call it")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        task = TASKS[name]
        if arguments.minutes != 0:
            teach(name, task, arguments.data, arguments.work, arguments.minutes or task.minutes)
        if arguments.export:
            export(name, task, arguments.work, arguments.export / name, arguments.machine)


if __name__ == "__main__":
    main()

"""Train the embedded model: a small RoBERTa-PreLayerNorm masked LM with its own byte-level BPE, on the CPU or a GPU.

    python tools/train_demo.py CORPUS WORK --minutes 120 [--export tinyroberta/demo]

CORPUS is a folder written by tools/demo_corpus.py. WORK keeps the tokenizer, the tokens and a checkpoint, so that a
stopped run goes on where it was; --minutes counts training time over all runs, and the learning-rate schedule follows
it. --export writes the Hub's file layout (bfloat16) and the model card. Needs torch, tokenizers, safetensors, numpy.

Hidden matrices are trained with Muon, everything else with AdamW; 20 % of the tokens are masked, always by <mask>.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CONFIG = {
    "architectures": ["RobertaPreLayerNormForMaskedLM"],
    "model_type": "roberta-prelayernorm",
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 258,
    "type_vocab_size": 1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, CONFIG["vocab_size"] - 1
MASKED_FRACTION = 0.2
TOKENS_PER_STEP = 16_384
LENGTHS, LENGTH_SHARES = (32, 64, 128, 256), (0.1, 0.25, 0.45, 0.2)
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 3e-3, 2e-3, 0.02
WARM_UP, DECAY = 0.02, 0.35  # shares of the time
EVALUATION_ROWS = 1024


def train_tokenizer(corpus: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"] - 1,
        min_frequency=10,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = (line for number, line in enumerate((corpus / "train.txt").open()) if number % 3 == 0 and line != "\f\n")
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS), add_prefix_space=False)
    assert tokenizer.token_to_id("<mask>") == MASK
    return tokenizer


def encode(tokenizer: Tokenizer, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A text file -> tokens (N,) uint16 and the sorted positions at which a sentence starts (M,) int64."""
    vocabulary = tokenizer.get_vocab()
    enders = np.zeros(CONFIG["vocab_size"], bool)
    for token, index in vocabulary.items():
        enders[index] = token.rstrip("\"')”’").endswith((".", "!", "?", "Ċ"))
    pieces, batch = [], []

    def flush() -> None:
        pieces.extend(np.array(e.ids, np.uint16) for e in tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        batch.clear()

    for line in path.open():
        if line != "\f\n":
            batch.append(line)
        if len(batch) == 20_000:
            flush()
    flush()
    tokens = np.concatenate(pieces)
    return tokens, np.flatnonzero(enders[tokens[:-1]] & ~enders[tokens[1:]]) + 1


def draw(random, tokens, starts, rows, length):  # -> ids (rows, length) int64, each row a run of whole sentences where they fit
    ids = np.full((rows, length), PAD, np.int64)
    for row, start in enumerate(random.choice(starts[starts < len(tokens) - length], rows)):
        after = starts[np.searchsorted(starts, start + length - 2, side="right") - 1]
        end = after if after > start + length // 4 else start + length - 2
        piece = tokens[start:end]
        ids[row, 0], ids[row, 1 : 1 + len(piece)], ids[row, 1 + len(piece)] = BOS, piece, EOS
    return ids


def mask(random, ids):  # -> masked ids, and the flat places that were masked
    chosen = (random.random(ids.shape) < MASKED_FRACTION) & (ids > UNK)
    return np.where(chosen, MASK, ids), np.flatnonzero(chosen)


def initial_parameters(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    D, I, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    tree = {}

    def normal(name, *shape):
        tree[f"{name}.weight"] = torch.randn(*shape, generator=generator) * CONFIG["initializer_range"]

    def dense(name, out, into):
        normal(name, out, into)
        tree[f"{name}.bias"] = torch.zeros(out)

    def norm(name):
        tree[f"{name}.weight"], tree[f"{name}.bias"] = torch.ones(D), torch.zeros(D)

    root = "roberta_prelayernorm."
    normal(root + "embeddings.word_embeddings", V, D)
    normal(root + "embeddings.position_embeddings", CONFIG["max_position_embeddings"], D)
    normal(root + "embeddings.token_type_embeddings", CONFIG["type_vocab_size"], D)
    norm(root + "embeddings.LayerNorm")
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"{root}encoder.layer.{index}."
        norm(layer + "attention.LayerNorm")
        for name in ("query", "key", "value"):
            dense(layer + "attention.self." + name, D, D)
        dense(layer + "attention.output.dense", D, D)
        norm(layer + "intermediate.LayerNorm")
        dense(layer + "intermediate.dense", I, D)
        dense(layer + "output.dense", D, I)
    norm(root + "LayerNorm")
    dense("lm_head.dense", D, D)
    norm("lm_head.layer_norm")
    tree["lm_head.bias"] = torch.zeros(V)
    return tree


def attention(q, k, v, bias):  # (B, H, S, d) x3, (B, 1, 1, S) -> (B, H, S, d); on a CPU faster to train than the fused one
    return torch.softmax(q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5) + bias, -1) @ v


def logits(tree, ids, places):  # ids (B, S), places (M,) -> (M, V); computed in the dtype of the tree
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], tree[name + ".weight"], tree[name + ".bias"], CONFIG["layer_norm_eps"])

    def dense(x, name):
        return F.linear(x, tree[name + ".weight"], tree[name + ".bias"])

    (B, S), D, H = ids.shape, CONFIG["hidden_size"], CONFIG["num_attention_heads"]
    root = "roberta_prelayernorm."
    real = ids != PAD
    positions = torch.cumsum(real, 1) * real + PAD
    embeddings = root + "embeddings."
    x = F.embedding(ids, tree[embeddings + "word_embeddings.weight"])
    x = x + F.embedding(positions, tree[embeddings + "position_embeddings.weight"])
    x = norm(x + tree[embeddings + "token_type_embeddings.weight"][0], embeddings + "LayerNorm")
    bias = torch.zeros(B, 1, 1, S, dtype=x.dtype, device=ids.device).masked_fill(~real[:, None, None], -1e4)
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"{root}encoder.layer.{index}."
        a = norm(x, layer + "attention.LayerNorm")
        q, k, v = (
            dense(a, layer + "attention.self." + name).view(B, S, H, D // H).transpose(1, 2) for name in ("query", "key", "value")
        )
        x = x + dense(attention(q, k, v, bias).transpose(1, 2).reshape(B, S, D), layer + "attention.output.dense")
        f = F.gelu(dense(norm(x, layer + "intermediate.LayerNorm"), layer + "intermediate.dense"))
        x = x + dense(f, layer + "output.dense")
    x = norm(x, root + "LayerNorm").reshape(B * S, D)[places]
    x = norm(F.gelu(dense(x, "lm_head.dense")), "lm_head.layer_norm")
    return F.linear(x, tree[embeddings + "word_embeddings.weight"], tree["lm_head.bias"])


class CrossEntropy(torch.autograd.Function):
    """The mean cross entropy of logits (M, V), whose gradient replaces them: one pass, 256 rows at a time in float32."""

    @staticmethod
    def forward(context, scores, truth):
        total = 0.0
        for rows, answers in zip(scores.split(256), truth.split(256), strict=True):
            probabilities = torch.softmax(rows.float(), -1)
            total -= probabilities.gather(1, answers[:, None]).clamp_min(1e-30).log().sum().item()
            probabilities.scatter_add_(1, answers[:, None], torch.full_like(probabilities[:, :1], -1))
            rows.copy_(probabilities)
        context.save_for_backward(scores)
        return torch.tensor(total / len(truth))

    @staticmethod
    def backward(context, gradient):
        (scores,) = context.saved_tensors
        return scores.mul_(gradient.item() / len(scores)), None


def schedule(share: float) -> float:
    if share < WARM_UP:
        return share / WARM_UP
    return 1.0 if share < 1 - DECAY else max(0.0, (1 - share) / DECAY)


@torch.no_grad()
def evaluate(tree, tokens, starts, unigram, device, rows=EVALUATION_ROWS):
    """Held-out loss (nats) and accuracies at one length, 128, over masks drawn with a fixed seed; beside the unigram baseline."""
    random, sums, count = np.random.default_rng(7), np.zeros(6), 0
    log_unigram, common = np.log(unigram), np.argsort(-unigram)[:5]
    for _ in range(rows // 64):
        ids = draw(random, tokens, starts, 64, 128)
        masked, places = mask(random, ids)
        truth = torch.from_numpy(ids.reshape(-1)[places]).to(device)
        scores = logits(tree, torch.from_numpy(masked).to(device), torch.from_numpy(places).to(device)).float()
        best = scores.topk(5).indices
        sums[0] += F.cross_entropy(scores, truth, reduction="sum").item()
        sums[1] += (best[:, 0] == truth).sum().item()
        sums[2] += (best == truth[:, None]).any(1).sum().item()
        answers = truth.cpu().numpy()
        sums[3] -= log_unigram[answers].sum()
        sums[4] += (answers == common[0]).sum()
        sums[5] += np.isin(answers, common).sum()
        count += len(places)
    names = ("loss", "top1", "top5", "unigram_loss", "unigram_top1", "unigram_top5")
    return dict(zip(names, (sums / count).tolist(), strict=True)) | {"masks": count}


def write_atomically(path: Path, write) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


CARD = """---
license: apache-2.0
language: en
library_name: tinyroberta
pipeline_tag: fill-mask
---
# The embedded model

A RoBERTa-PreLayerNorm masked language model of {parameters:,} parameters: {num_hidden_layers} layers of width
{hidden_size}, {num_attention_heads} heads, feed-forward {intermediate_size}, its own byte-level BPE of {vocab_size:,}
tokens, texts of up to {usable} tokens, bfloat16.
It is here so that everything in this library can be run, read and tested on a real trained model without a download.

Beside it are folders with models of its kind for other tasks, which begin from it, each with its card.
`tinyroberta.demo.load("text-classification")` and its like read them.

**Trained on** {tokens:,} tokens of English: {characters:,} characters, of which five sixths are public-domain books
(1780 to 1929), the rest State of the Union addresses (public domain), WordNet glosses (WordNet licence) and the
PostgreSQL, SQLite and Django manuals (permissive licences). One document in sixty was held out.

**For** {minutes:.0f} minutes on {device} ({seen:,} tokens seen, {steps:,} steps of {step_tokens:,} tokens, 20 % of them masked)
by `tools/train_demo.py`: Muon for the hidden matrices, AdamW for the rest, bfloat16 arithmetic.

| on {masks:,} masked tokens of the held-out documents | loss (nats) | top 1 | top 5 |
|---|---|---|---|
| this model | {loss:.3f} | {top1:.1%} | {top5:.1%} |
| the most frequent tokens (unigram) | {unigram_loss:.3f} | {unigram_top1:.1%} | {unigram_top5:.1%} |

**Not for** facts, judgements or anything that matters. It knows the English of old novels and of manuals, and it
repeats the prejudices of its sources.
"""


def export(folder: Path, tree, tokenizer: Tokenizer, facts: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in tree.items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(stored, path, {"format": "pt"}))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False},
    }
    usable = CONFIG["max_position_embeddings"] - PAD - 1
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": usable, "add_prefix_space": False}
    for name, content in (("config", CONFIG), ("special_tokens_map", special), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    parameters = sum(value.numel() for value in stored.values())
    (folder / "README.md").write_text(CARD.format(**CONFIG | facts | {"parameters": parameters, "usable": usable}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="what the model card calls it")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    if (work / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(arguments.corpus)
        write_atomically(work / "tokenizer.json", lambda path: tokenizer.save(str(path)))
    for part in ("held_out", "train"):
        if not (work / f"{part}.npz").exists():
            tokens, starts = encode(tokenizer, arguments.corpus / f"{part}.txt")
            np.savez(work / f"{part}.part.npz", tokens=tokens, starts=starts)
            (work / f"{part}.part.npz").replace(work / f"{part}.npz")
    tokens, starts = (np.load(work / "train.npz")[name] for name in ("tokens", "starts"))
    held_tokens, held_starts = (np.load(work / "held_out.npz")[name] for name in ("tokens", "starts"))
    counts = np.bincount(tokens, minlength=CONFIG["vocab_size"]) + 1.0
    unigram = counts / counts.sum()
    print(f"{len(tokens):,} tokens, {len(starts):,} sentences; held out {len(held_tokens):,}", flush=True)

    tree = {name: value.to(device).requires_grad_() for name, value in initial_parameters(0).items()}
    hidden = [value for name, value in tree.items() if value.ndim == 2 and "embeddings" not in name]
    matrices = {id(value) for value in hidden}
    optimizers = [
        torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [value for value in tree.values() if id(value) not in matrices], lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]
    rates = (MUON_RATE, ADAM_RATE)
    state = {"step": 0, "seconds": 0.0, "seen": 0}
    if (work / "checkpoint.pt").exists():
        saved = torch.load(work / "checkpoint.pt", map_location=device)
        with torch.no_grad():
            for name, value in saved["tree"].items():
                tree[name].copy_(value)
        for optimizer, value in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        state = saved["state"]

    budget, random = arguments.minutes * 60, np.random.default_rng(state["step"])
    losses, saved_at = [], time.perf_counter()
    while state["seconds"] < budget:
        began = time.perf_counter()
        share = state["seconds"] / budget
        length = int(random.choice(LENGTHS, p=LENGTH_SHARES))
        ids = draw(random, tokens, starts, TOKENS_PER_STEP // length, length)
        masked, places = mask(random, ids)
        truth = torch.from_numpy(ids.reshape(-1)[places]).to(device)
        low = {name: value.to(torch.bfloat16) for name, value in tree.items()}
        loss = CrossEntropy.apply(logits(low, torch.from_numpy(masked).to(device), torch.from_numpy(places).to(device)), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(tree.values()), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(share)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise SystemExit("the loss is not finite: lower the rates and start again")
        state["step"] += 1
        state["seen"] += int((ids != PAD).sum())
        state["seconds"] += time.perf_counter() - began
        if state["step"] % 50 == 0:
            print(
                f"step {state['step']}  {state['seconds'] / 60:.1f} min  loss {np.mean(losses[-50:]):.3f}  "
                f"{state['seen'] / state['seconds']:,.0f} tokens/s",
                flush=True,
            )
        if time.perf_counter() - saved_at > 300 or state["seconds"] >= budget:
            content = {
                "tree": {name: value.detach() for name, value in tree.items()},
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "state": state,
            }
            write_atomically(work / "checkpoint.pt", lambda path, content=content: torch.save(content, path))
            print("held out:", evaluate(tree, held_tokens, held_starts, unigram, device, rows=256), flush=True)
            saved_at = time.perf_counter()

    rounded = {name: value.detach().to(torch.bfloat16).float() for name, value in tree.items()}
    facts = evaluate(rounded, held_tokens, held_starts, unigram, device)
    facts |= {
        "tokens": len(tokens),
        "characters": len((arguments.corpus / "train.txt").read_text(encoding="utf-8")),
        "step_tokens": TOKENS_PER_STEP,
    }
    facts |= {"minutes": state["seconds"] / 60, "device": arguments.machine, "seen": state["seen"], "steps": state["step"]}
    print(json.dumps(facts))
    if arguments.export:
        export(arguments.export, tree, tokenizer, facts)


if __name__ == "__main__":
    main()

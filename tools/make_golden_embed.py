"""Write tests/golden_embed: what sentence-transformers makes of tiny random folders, RoBERTa and XLM-RoBERTa.

    pip install sentence-transformers==5.7.0 transformers==4.57.6 && python tools/make_golden_embed.py

A case is a folder of what differs from its base (roberta, xlm-roberta), which the test lays over it; answers.safetensors has what
sentence-transformers gives for TEXTS and PAIRS in float64.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, models

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from embed_folders import BASES, CASES, PAIRS, RERANKERS, ROOT, SENTENCES, TEXTS, laid_over

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3,
    "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SKIPPED = (  # the base's, or what the base does without
    "README.md", "config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "special_tokens_map.json",
    "tokenizer.json", "vocab.json",
)  # fmt: skip
OLD = {flag: mode for mode, flag in {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}.items()}  # fmt: skip


def byte_level() -> Any:
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(SENTENCES * 3, vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_model(folder)
        return transformers.RobertaTokenizerFast(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=64)


def unigram() -> Any:
    """Not trained: training unigrams gives other pieces each time."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    pieces = dict.fromkeys(piece for word in words for piece in (f"▁{word}", f"▁{word[:2]}", word[-2:], *word, "▁"))
    scored = [(piece, 0.0) for piece in SPECIAL] + [(piece, -9.0 / len(piece)) for piece in pieces]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scored, unk_id=3))
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return transformers.XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def write_base(name: str, kind: str, tokenizer: Any) -> None:
    torch.manual_seed(len(name))
    config = transformers.AutoConfig.for_model(name, vocab_size=len(tokenizer), **SIZES)
    head = {"Model": "AutoModel", "ForSequenceClassification": "AutoModelForSequenceClassification"}[kind]
    model = getattr(transformers, head).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide half the mistakes
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(ROOT / name)
    tokenizer.save_pretrained(ROOT / name)
    for file in (ROOT / name).iterdir():
        if file.name not in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            file.unlink()


def write_case(name: str, base: str, what: dict[str, Any]) -> None:
    """A folder's modules as sentence-transformers saves them, under the names that it had before 5.4 where the case says old."""
    torch.manual_seed(len(name))
    transformer = models.Transformer(str(ROOT / base), max_seq_length=what.get("max_seq_length"))
    modules = [transformer, models.Pooling(16, what["modes"], include_prompt=what.get("include_prompt", True))]
    width = 16 * len(what["modes"])
    for size, activation, more in what.get("dense", []):
        modules.append(models.Dense(width, size, activation_function=getattr(torch.nn, activation)(), **more))
        width = size
    if what.get("normalize"):
        modules.append(models.Normalize())
    model = SentenceTransformer(
        modules=modules, prompts=what.get("prompts"), default_prompt_name=what.get("default_prompt_name"),
        similarity_fn_name=what.get("similarity"), device="cpu",
    )  # fmt: skip
    folder = ROOT / name
    with tempfile.TemporaryDirectory() as saved:
        model.save(saved, create_model_card=False, safe_serialization=not what.get("old"))
        for file in Path(saved).rglob("*"):
            own = file.relative_to(saved)
            same = ROOT / base / own
            if file.is_file() and own.parts[0] not in SKIPPED and not (same.exists() and same.read_bytes() == file.read_bytes()):
                (folder / own).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / own)
    if what.get("old"):
        as_before(folder, what)


def as_before(folder: Path, what: dict[str, Any]) -> None:
    """The files as sentence-transformers wrote them before 5.4."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    write(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": 16, "include_prompt": what.get("include_prompt", True)}
    write(folder / "1_Pooling" / "config.json", pooling | {flag: mode in what["modes"] for flag, mode in OLD.items()})
    settings = {"max_seq_length": what.get("max_seq_length", 64), "do_lower_case": what.get("lower", False)}
    write(folder / "sentence_bert_config.json", settings)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_reranker(name: str, base: str, what: dict[str, Any]) -> None:
    """A head of its own over a base's encoder."""
    torch.manual_seed(len(name))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(ROOT / base, num_labels=what["labels"])
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.config.update(what.get("config", {}))
    model.save_pretrained(ROOT / name)


def main() -> None:
    assert transformers.__version__ == "4.57.6"
    assert sentence_transformers.__version__ == "5.7.0"
    shutil.rmtree(ROOT, ignore_errors=True)
    for base, tokenizer in zip(BASES, (byte_level(), unigram()), strict=True):
        write_base(base, "Model", tokenizer)
    answers: dict[str, Any] = {}
    double = {"torch_dtype": torch.float64}
    for name, (base, what) in CASES.items():
        write_case(name, base, what)
        with tempfile.TemporaryDirectory() as folder:
            model = SentenceTransformer(str(laid_over(Path(folder), name)), device="cpu", model_kwargs=double).double()
            answers[name] = model.encode(TEXTS)
            for prompt in model.prompts:
                if model.prompts[prompt]:
                    answers[f"{name}/{prompt}"] = model.encode(TEXTS, prompt_name=prompt)
            answers[f"{name}/cut"] = model.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)
            answers[f"{name}/similarity"] = model.similarity(answers[name], answers[name]).numpy()
            answers[f"{name}/tokens"] = model.encode(TEXTS[1], output_value="token_embeddings").numpy()
    for name, (base, what) in RERANKERS.items():
        write_reranker(name, base, what)
        with tempfile.TemporaryDirectory() as folder:
            model = CrossEncoder(str(laid_over(Path(folder), name)), device="cpu", model_kwargs=double).double()
            answers[name] = np.asarray(model.predict(PAIRS, convert_to_tensor=True).numpy())
            answers[f"{name}/identity"] = model.predict(PAIRS, activation_fn=torch.nn.Identity(), convert_to_tensor=True).numpy()
            if what["labels"] > 1:
                answers[f"{name}/softmax"] = model.predict(PAIRS, apply_softmax=True, convert_to_tensor=True).numpy()
            else:
                ranked = model.rank(PAIRS[0][0], [pair[1] for pair in PAIRS], top_k=3)
                answers[f"{name}/rank"] = np.array([one["corpus_id"] for one in ranked])
    save_file({key: np.ascontiguousarray(x) for key, x in answers.items()}, ROOT / "answers.safetensors")
    print(f"{len(answers)} answers, {sum(file.stat().st_size for file in ROOT.rglob('*') if file.is_file()):,} bytes")


if __name__ == "__main__":
    main()

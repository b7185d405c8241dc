"""Write tests/golden_tasks: two small tokenizers, tiny random models, and what transformers' pipelines make of texts with them.

    pip install torch==2.13.0 transformers==4.57.6 && python tools/make_golden_tasks.py

A model's weights are stored in float16, which keeps the files small, and read as float32 by both.
"""

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoTokenizer, RobertaTokenizerFast, XLMRobertaTokenizerFast, pipeline

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tasks_for_tests import CONTEXT, FOLLOWED, LONG, MASKED, MODELS, PAIRS, PROMPTS, QUESTIONS, ROOT, TEXTS, assemble

LENGTH = 48  # tokens that the tokenizers allow


def train() -> None:
    """A byte-level tokenizer and one of sentencepiece's kind, which know parts of the words of the texts."""
    corpus = [*TEXTS, LONG, CONTEXT] * 3
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    with tempfile.TemporaryDirectory() as folder:
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(corpus, vocab_size=320, min_frequency=2, special_tokens=names, show_progress=False)
        vocabulary, merges = bpe.save_model(folder)
        RobertaTokenizerFast(vocabulary, merges, model_max_length=LENGTH).save_pretrained(folder)
        keep(folder, "byte_level")
    with tempfile.TemporaryDirectory() as folder:
        unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
        unigram.normalizer, unigram.pre_tokenizer = tokenizers.normalizers.NFKC(), tokenizers.pre_tokenizers.Metaspace()
        unigram.decoder = tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(vocab_size=150, special_tokens=names, unk_token="<unk>", show_progress=False)
        unigram.train_from_iterator(corpus, trainer)
        unigram.post_processor = tokenizers.processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        unigram.save(str(Path(folder, "trained.json")))
        XLMRobertaTokenizerFast(tokenizer_file=str(Path(folder, "trained.json")), model_max_length=LENGTH).save_pretrained(folder)
        keep(folder, "unigram")


def keep(folder: str, name: str) -> None:
    (ROOT / name).mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads(Path(folder, file).read_text(encoding="utf-8"))
        (ROOT / name / file).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def make(name: str, seed: int) -> None:
    """A model whose weights are drawn so widely that scores differ clearly."""
    family, head, kind, fields = MODELS[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(AutoTokenizer.from_pretrained(ROOT / kind)), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=LENGTH + 2, type_vocab_size=1, pad_token_id=1, **fields,
    )  # fmt: skip
    model = getattr(transformers, f"{family}{head}")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = 1.5 if parameter.ndim == 2 and len(parameter) > 100 else 0.5
            gain = float(parameter.ndim == 1 and bool((parameter == 1).all()))
            parameter.copy_(gain + torch.randn(parameter.shape, generator=generator) * wide)
    model.half().save_pretrained(ROOT / name)
    (ROOT / name / "generation_config.json").unlink(missing_ok=True)


def cases() -> list[tuple[str, str, Any, dict[str, Any]]]:
    """A model, its task, inputs and keywords."""
    found: list[tuple[str, str, Any, dict[str, Any]]] = []
    for name in ("labels", "several_labels", "number"):
        ways: list[dict[str, Any]] = [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}]
        ways += [{"top_k": None, "function_to_apply": how} for how in ("sigmoid", "softmax", "none")]
        for way in ways:
            given = (TEXTS[0], [*TEXTS, ""], PAIRS[0], PAIRS, [TEXTS[0]])
            found += [(name, "text-classification", inputs, way) for inputs in given]
    for name in ("entities", "entities_unigram"):
        for strategy in ("none", "simple", "first", "average", "max"):
            found.append((name, "token-classification", [*TEXTS, ""], {"aggregation_strategy": strategy}))
            for ignored in ([], ["O", "PER"]):
                way = {"aggregation_strategy": strategy, "ignore_labels": ignored}
                found.append((name, "token-classification", TEXTS[1:2], way))
            found.append((name, "token-classification", TEXTS[1], {"aggregation_strategy": strategy}))
            if strategy != "none":
                ways = [{"aggregation_strategy": strategy, "stride": stride} for stride in (0, 7)]
                found += [(name, "token-classification", LONG, way) for way in ways]
    words = [text.split() for text in TEXTS]
    for strategy in ("none", "simple", "first"):
        way = {"aggregation_strategy": strategy, "is_split_into_words": True}
        found += [("entities_unigram", "token-classification", words, way)]
        found += [("entities_unigram", "token-classification", words[0], {**way, "delimiter": "__"})]
    for name in ("answers", "answers_unigram"):
        ways = [{}, {"top_k": 3}, {"top_k": 20}, {"align_to_words": False, "top_k": 4}, {"max_answer_len": 1}]
        ways += [{"handle_impossible_answer": True, "top_k": 3}, {"max_answer_len": 40, "top_k": 2}]
        ways += [{"max_seq_len": 30, "doc_stride": 5}, {"max_seq_len": 32, "doc_stride": 1, "top_k": 6}, {"doc_stride": 12}]
        found += [(name, "question-answering", asked, way) for asked in QUESTIONS for way in ways]
        found.append((name, "question-answering", QUESTIONS, {"top_k": 2}))
    for name in ("words", "words_unigram"):
        for way in ({}, {"top_k": 2}, {"targets": ["e", "a", "the", "e"]}, {"targets": "a", "top_k": 3}):
            found += [(name, "fill-mask", text, way) for text in MASKED]
            found.append((name, "fill-mask", MASKED, way))
    found += [(name, "feature-extraction", inputs, {}) for name in ("bare",) for inputs in (TEXTS[0], TEXTS[:3])]
    for way in (
        {"max_new_tokens": 9}, {"max_new_tokens": 9, "return_full_text": False}, {"max_new_tokens": 5, "return_tensors": True},
        {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2}, {"max_new_tokens": 8, "repetition_penalty": 1.5},
        {"max_new_tokens": 12, "clean_up_tokenization_spaces": False, "skip_special_tokens": False},
    ):  # fmt: skip
        found += [("causal", "text-generation", inputs, {"do_sample": False, **way}) for inputs in (*PROMPTS, PROMPTS)]
    return found


def main() -> None:
    assert transformers.__version__ == "4.57.6"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    ROOT.mkdir(exist_ok=True)
    if not (ROOT / "unigram").exists():  # its training is not the same twice
        train()
    for seed, name in enumerate(MODELS):
        make(name, seed)
    lines, pipelines = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, task, inputs, way in cases():
            if name not in pipelines:
                folder = assemble(name, Path(temporary, name))
                pipelines[name] = pipeline(task, model=str(folder), dtype=torch.float32, device="cpu")
            asked = {"question": inputs["question"], "context": inputs["context"]} if is_question(task, inputs) else None
            result = pipelines[name](**asked, **way) if asked else pipelines[name](inputs, **way)
            entry = {"model": name, "task": task, "inputs": inputs, "arguments": way, "result": result}
            lines.append(json.dumps(entry, ensure_ascii=False, default=float))
        lines += [json.dumps(entry, ensure_ascii=False) for entry in choices(Path(temporary))]
    (ROOT / "cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(lines)} cases, {sum(file.stat().st_size for file in ROOT.rglob('*') if file.is_file()) // 1000} kB")


def is_question(task: str, inputs: Any) -> bool:
    return task == "question-answering" and isinstance(inputs, dict)


def choices(temporary: Path) -> list[dict[str, Any]]:
    """Multiple choice, which has no pipeline: pairs of the prompt and each choice, as transformers' documents do it."""
    folder = assemble("choices", temporary / "choices")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, endings in FOLLOWED:
        inputs = tokenizer([[prompt, ending] for ending in endings], return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**{name: value.unsqueeze(0) for name, value in inputs.items()}).logits
        scores = logits.softmax(-1)[0].tolist()
        order = sorted(range(len(endings)), key=lambda index: -scores[index])
        result = [{"choice": endings[index], "index": index, "score": scores[index]} for index in order]
        entry = {"model": "choices", "task": "multiple-choice", "inputs": {"prompt": prompt, "choices": endings}}
        found.append({**entry, "arguments": {}, "result": result})
    return found


if __name__ == "__main__":
    main()

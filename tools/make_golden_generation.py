"""Write tests/golden_generation: what transformers' generate gives, token for token, and an encoder-decoder with its outputs.

    python tools/make_golden_generation.py        # with torch 2.13.0 and transformers 4.57.6, after tools/make_golden.py

transformers' generate starts positions at 0: those cases say first_position 0. The cases of a plain loop over its forward pass,
which starts them at pad_token_id + 1, say nothing.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
FOLDER = GOLDEN.parent / "golden_generation"
PROMPTS = {"even": [[0, 9, 17, 5, 30], [0, 21, 8, 29, 12]], "left-padded": [[1, 1, 0, 9, 17], [0, 6, 7, 6, 7], [1, 1, 1, 0, 24]]}
ENDS = [2, 8, 14, 20, 26]
WAYS = {
    "greedy": {},
    "ends": {"eos_token_id": ENDS},
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad-words": {"bad_words_ids": [[5], [9, 12], [30, 2, 7]]},
    "min-length": {"min_length": 11, "eos_token_id": ENDS},
    "min-new": {"min_new_tokens": 4, "eos_token_id": ENDS},
    "beams": {"num_beams": 3},
    "beams-several": {"num_beams": 4, "eos_token_id": ENDS, "num_return_sequences": 3},
    "beams-early": {"num_beams": 3, "early_stopping": True, "eos_token_id": ENDS},
    "beams-never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "eos_token_id": ENDS},
    "beams-short": {"num_beams": 3, "length_penalty": -1.5, "eos_token_id": ENDS},
    "beams-penalised": {"num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "num_return_sequences": 2},
}
MAX_LENGTH = 16


def processed() -> list[dict]:
    """Scores before and after transformers' processors, in the order of its generate."""
    L, eos, random = transformers.generation.logits_process, torch.tensor([2, 5]), np.random.default_rng(3)
    chains = [
        ({"repetition_penalty": 1.4}, [L.RepetitionPenaltyLogitsProcessor(1.4)]),
        ({"no_repeat_ngram_size": 2}, [L.NoRepeatNGramLogitsProcessor(2)]),
        ({"bad_words_ids": [[4], [6, 7], [2]]}, [L.NoBadWordsLogitsProcessor([[4], [6, 7], [2]], eos)]),
        ({"min_length": 30}, [L.MinLengthLogitsProcessor(30, eos)]),
        ({"temperature": 0.6}, [L.TemperatureLogitsWarper(0.6)]),
        ({"top_k": 5}, [L.TopKLogitsWarper(5)]),
        ({"top_p": 0.7}, [L.TopPLogitsWarper(0.7)]),
        ({"min_p": 0.2}, [L.MinPLogitsWarper(0.2)]),
        ({"typical_p": 0.4}, [L.TypicalLogitsWarper(0.4)]),
        (
            {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
            [
                L.TemperatureLogitsWarper(1.3),
                L.TopKLogitsWarper(9),
                L.TopPLogitsWarper(0.9),
                L.MinPLogitsWarper(0.05),
                L.TypicalLogitsWarper(0.8),
            ],
        ),
        (
            {"num_beams": 2, "top_k": 1, "top_p": 0.01, "min_p": 0.99, "typical_p": 0.01},
            [
                L.TopKLogitsWarper(1, min_tokens_to_keep=3),
                L.TopPLogitsWarper(0.01, min_tokens_to_keep=3),
                L.MinPLogitsWarper(0.99, min_tokens_to_keep=3),
                L.TypicalLogitsWarper(0.01, min_tokens_to_keep=3),
            ],
        ),
    ]
    cases = []
    for choice, chain in chains:
        ids, scores = random.integers(0, 12, (4, 15)), random.standard_normal((4, 12)) * 3
        after = torch.tensor(scores)
        for processor in chain:
            after = processor(torch.tensor(ids), after)
        listed = [[None if np.isinf(x) else x for x in row] for row in after.tolist()]
        cases.append({"choice": choice, "ids": ids.tolist(), "scores": scores.tolist(), "after": listed})
    return cases


def generated() -> list[dict]:
    model = transformers.RobertaPreLayerNormForCausalLM.from_pretrained(GOLDEN / "causal_lm").double().eval()
    cases = []
    for prompts, ids in PROMPTS.items():
        ids = torch.tensor(ids)
        mask = (ids != model.config.pad_token_id).long()
        for way, arguments in WAYS.items():
            tokens = model.generate(ids, attention_mask=mask, max_length=MAX_LENGTH, pad_token_id=1, **arguments)
            given = {**arguments, "max_length": MAX_LENGTH, "pad_token_id": 1, "first_position": 0}
            cases.append({"name": f"{prompts}-{way}", "ids": ids.tolist(), "arguments": given, "tokens": tokens.tolist()})
    ids = torch.tensor(PROMPTS["even"])
    for _ in range(10):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    given = {"max_new_tokens": 10, "eos_token_id": []}
    return [*cases, {"name": "loop", "ids": PROMPTS["even"], "arguments": given, "tokens": ids.tolist()}]


def encoder_decoder(folder: Path) -> None:
    """A pair of different widths, which needs enc_to_dec_proj, its outputs in float64 and what it generates."""
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 20, "type_vocab_size": 1, "intermediate_size": 20}
    E = transformers.RobertaPreLayerNormConfig(**sizes, vocab_size=41, hidden_size=12, num_attention_heads=2)
    D = transformers.RobertaPreLayerNormConfig(
        **sizes, vocab_size=31, hidden_size=18, num_attention_heads=3, is_decoder=True, add_cross_attention=True
    )
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    model = transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(E, D, **tokens)
    ).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = model.double()
    ids = torch.tensor([[0, 9, 17, 5, 2], [0, 33, 2, 1, 1]])
    labels = torch.tensor([[7, 9, 11, 2], [20, 2, -100, -100]])
    given = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    with torch.no_grad():
        output = model(**given, labels=labels, output_hidden_states=True, output_attentions=True)
    fields = {f"input_{name}": value for name, value in given.items()} | {"input_labels": labels}
    for name in ("loss", "logits", "encoder_last_hidden_state"):
        fields[name] = output[name]
    for name in ("decoder_attentions", "cross_attentions", "encoder_attentions"):
        fields[name] = torch.stack(output[name])
    for way, arguments in {"greedy": {}, "beams": {"num_beams": 3, "eos_token_id": [2, 7, 11]}}.items():
        fields[f"tokens_{way}"] = model.generate(**given, max_length=10, **arguments)
    save_file({name: value.contiguous().numpy() for name, value in fields.items()}, folder / "golden.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    content = {"versions": {"transformers": transformers.__version__, "torch": torch.__version__}}
    content |= {"processed": processed(), "generated": generated()}
    (FOLDER / "generation.json").write_text(json.dumps(content, separators=(",", ":")).replace('{"choice"', '\n{"choice"') + "\n")
    encoder_decoder(FOLDER / "encoder_decoder")


if __name__ == "__main__":
    main()

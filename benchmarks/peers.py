"""The runs that benchmarks.cpu times: ours, and every peer's that is installed, each made from one folder of exported files.

A run takes a list of batches, (ids, mask) each, and gives a list of last hidden states. How each peer is had at its best:

- ONNX Runtime: exported by torch's old exporter with eager attention, else nothing is fused; then fused by its own optimiser;
  int8 is its dynamic quantiser on the fused model, which needs DefaultTensorType.
- OpenVINO: converted from transformers with fused attention; bf16 is its precision hint; int8 is nncf's post-training quantiser.
- CTranslate2: its converter refuses the model; its specification with pre_norm=True fits, filled here.
- torch.compile: freezing on, one compilation a shape.

    pip install transformers torch onnx onnxruntime openvino nncf ctranslate2
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyroberta

Array = np.ndarray[Any, np.dtype[Any]]
Batches = list[tuple[Array, Array]]
Run = Callable[[Batches], list[Array]]


class Kind(NamedTuple):
    """A class of runs: how far from float64 one may be (relative, Frobenius), and ours that its peers are compared with."""

    most: float
    ours: str


KINDS = {
    "float32": Kind(1e-6, "numba highest"),
    "bf16": Kind(2e-2, "numba medium"),
    "int8": Kind(6e-2, "numba medium"),
}


class Stack(NamedTuple):
    """One way to run the model: its class, how to load it from a folder, what must be installed, what is exported first."""

    kind: str
    load: Callable[[Path, int], Run]  # the folder, threads
    needs: tuple[str, ...] = ()
    export: Callable[[Path], None] | None = None
    most: float | None = None  # of its own, where the class's is not what is promised

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def write_model(config: Any, tensors: dict[str, Array], folder: Path) -> None:
    """The checkpoint that everything else is made from, in folder/model, unless it is there."""
    if not (folder / "model" / "model.safetensors").exists():
        tinyroberta.RobertaPreLayerNormModel(config, tensors).save_pretrained(folder / "model")


# Ours


def ours(path: str | None = None, **running: Any) -> Callable[[Path, int], Run]:
    def load(folder: Path, threads: int) -> Run:
        if path is not None:
            os.environ["TINYROBERTA_CPU"] = path
        model = tinyroberta.load(str(folder / "model"), threads=threads, **running)
        return lambda batches: [np.asarray(model(ids, mask).last_hidden_state) for ids, mask in batches]

    return load


# PyTorch


def torch_model(folder: Path, threads: int, attention: str = "sdpa") -> Any:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    kind = transformers.RobertaPreLayerNormModel
    return kind.from_pretrained(folder / "model", attn_implementation=attention, add_pooling_layer=False).eval()


def torch_run(kind: str, compiled: bool = False) -> Callable[[Path, int], Run]:
    def load(folder: Path, threads: int) -> Run:
        import torch

        model = torch_model(folder, threads).to(torch.bfloat16 if kind == "bf16" else torch.float32)
        shapes: list[Any] = []
        call = model
        if compiled:
            import torch._dynamo.config
            import torch._inductor.config

            torch._inductor.config.freezing = True
            torch._dynamo.config.recompile_limit = 64
            call = torch.compile(model, dynamic=False)

        def run(batches: Batches) -> list[Array]:
            nonlocal shapes
            if compiled and [ids.shape for ids, _ in batches] != shapes:
                torch._dynamo.reset()  # every shape keeps frozen weights of its own
                shapes = [ids.shape for ids, _ in batches]
            answers = []
            with torch.inference_mode():
                for ids, mask in batches:
                    given = {} if mask.all() else {"attention_mask": torch.from_numpy(mask)}
                    answers.append(call(torch.from_numpy(ids), **given).last_hidden_state.float().numpy())
            return answers

        return run

    return load


# ONNX Runtime


def export_onnx(folder: Path) -> None:
    """float32.onnx, fused, and int8.onnx, quantised from it."""
    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers import optimizer

    class Traced(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(ids, attention_mask=mask).last_hidden_state

    model = torch_model(folder, 2, "eager")
    ids = torch.randint(3, model.config.vocab_size, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    plain = folder / "plain.onnx"
    axes = {0: "batch", 1: "length"}
    with torch.inference_mode():
        torch.onnx.export(
            Traced(model), (ids, mask), str(plain), input_names=["ids", "mask"], output_names=["x"], opset_version=17,
            dynamic_axes={"ids": axes, "mask": axes, "x": axes}, dynamo=False,
        )  # fmt: skip
    config = model.config
    fused = optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    print("  ONNX Runtime fused:", {k: v for k, v in fused.get_fused_operator_statistics().items() if v}, flush=True)
    fused.save_model_to_file(str(folder / "float32.onnx"))
    quantize_dynamic(folder / "float32.onnx", folder / "int8.onnx", extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    plain.unlink()


def onnx_run(kind: str) -> Callable[[Path, int], Run]:
    def load(folder: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        session = onnxruntime.InferenceSession(str(folder / f"{kind}.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda batches: [session.run(None, {"ids": ids, "mask": mask})[0] for ids, mask in batches]

    return load


# OpenVINO


def export_openvino(folder: Path) -> None:
    """float32.xml with its weights, and int8.xml, quantised from it on drawn texts."""
    import nncf
    import openvino
    import torch

    model = torch_model(folder, 2)
    ids = torch.randint(3, model.config.vocab_size, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        converted = openvino.convert_model(model, example_input={"input_ids": ids, "attention_mask": mask})
    openvino.save_model(converted, folder / "float32.xml", compress_to_fp16=False)
    random = np.random.default_rng(1)
    drawn = [random.integers(3, model.config.vocab_size, (1, length)) for length in random.integers(16, 129, 32)]
    texts = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in drawn]
    quantised = nncf.quantize(converted, nncf.Dataset(texts), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
    openvino.save_model(quantised, folder / "int8.xml", compress_to_fp16=False)


def openvino_run(kind: str) -> Callable[[Path, int], Run]:
    def load(folder: Path, threads: int) -> Run:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        }
        model = openvino.Core().compile_model(folder / ("int8.xml" if kind == "int8" else "float32.xml"), "CPU", settings)
        request = model.create_infer_request()
        return lambda batches: [np.array(request.infer({"input_ids": ids, "attention_mask": mask})[0]) for ids, mask in batches]

    return load


# CTranslate2


def export_ctranslate2(folder: Path) -> None:
    """Folders ctranslate2-float32 and ctranslate2-int8."""
    for kind in ("float32", "int8"):
        _ctranslate2_specification(folder, None if kind == "float32" else kind)


def _ctranslate2_specification(folder: Path, quantization: str | None) -> None:
    from ctranslate2 import specs
    from ctranslate2.converters import utils
    from ctranslate2.specs import common_spec, transformer_spec

    model = tinyroberta.load(str(folder / "model"))
    config, tensors = model.config, {name: np.array(x) for name, x in model.tensors.items()}
    encoder = transformer_spec.TransformerEncoderSpec(
        config.num_hidden_layers, config.num_attention_heads, pre_norm=True, activation=specs.Activation.GELU,
        layernorm_embedding=True, num_source_embeddings=2, embeddings_merge=common_spec.EmbeddingsMerge.ADD,
    )  # fmt: skip
    encoder.scale_embeddings = False

    def norm(spec: Any, name: str) -> None:
        spec.gamma, spec.beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def linear(spec: Any, name: str) -> Any:
        spec.weight, spec.bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return spec

    encoder.embeddings[0].weight = tensors["embeddings.word_embeddings.weight"]
    encoder.embeddings[1].weight = tensors["embeddings.token_type_embeddings.weight"]
    encoder.position_encodings.encodings = tensors["embeddings.position_embeddings.weight"][config.pad_token_id + 1 :]
    norm(encoder.layernorm_embedding, "embeddings.LayerNorm")
    norm(encoder.layer_norm, "LayerNorm")
    for i, layer in enumerate(encoder.layer):
        name = f"encoder.layer.{i}"
        parts = [linear(common_spec.LinearSpec(), f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        utils.fuse_linear(layer.self_attention.linear[0], parts)
        linear(layer.self_attention.linear[1], f"{name}.attention.output.dense")
        norm(layer.self_attention.layer_norm, f"{name}.attention.LayerNorm")
        linear(layer.ffn.linear_0, f"{name}.intermediate.dense")
        linear(layer.ffn.linear_1, f"{name}.output.dense")
        norm(layer.ffn.layer_norm, f"{name}.intermediate.LayerNorm")
    spec = transformer_spec.TransformerEncoderModelSpec(encoder)
    spec.register_vocabulary(["<s>", "<pad>", "</s>", "<unk>", *(str(i) for i in range(4, config.vocab_size))])
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(quantization=quantization)
    out = folder / f"ctranslate2-{quantization or 'float32'}"
    out.mkdir(exist_ok=True)
    spec.save(str(out))


def ctranslate2_run(kind: str) -> Callable[[Path, int], Run]:
    def load(folder: Path, threads: int) -> Run:
        import ctranslate2

        encoder = ctranslate2.Encoder(str(folder / f"ctranslate2-{kind}"), compute_type=kind, intra_threads=threads)

        def run(batches: Batches) -> list[Array]:
            view, answers = ctranslate2.StorageView.from_array, []
            for ids, mask in batches:
                lengths = mask.sum(1).astype(np.int32)
                types = [[0] * int(n) for n in lengths]
                given = encoder.forward_batch(view(ids.astype(np.int32)), view(lengths), types)
                answers.append(np.array(given.last_hidden_state))
            return answers

        return run

    return load


PYTORCH = ("torch", "transformers")
STACKS = {
    "numba highest": Stack("float32", ours(backend="numba"), ("numba",), most=6e-7),
    "numba high": Stack("high", ours(backend="numba", matmul_precision="high"), ("numba",), most=2e-4),
    "numba medium": Stack("bf16", ours(backend="numba", matmul_precision="medium"), ("numba",), most=5e-3),
    "numba highest fma": Stack("float32", ours("fma", backend="numba"), ("numba",), most=6e-7),
    "numba highest blas": Stack("float32", ours("blas", backend="numba"), ("numba",)),
    "numpy": Stack("float32", ours(backend="numpy")),
    "torch": Stack("float32", torch_run("float32"), PYTORCH),
    "torch bf16": Stack("bf16", torch_run("bf16"), PYTORCH),
    "torch.compile": Stack("float32", torch_run("float32", True), PYTORCH),
    "torch.compile bf16": Stack("bf16", torch_run("bf16", True), PYTORCH),
    "onnxruntime": Stack("float32", onnx_run("float32"), ("onnxruntime", "onnx", *PYTORCH), export_onnx),
    "onnxruntime int8": Stack("int8", onnx_run("int8"), ("onnxruntime", "onnx", *PYTORCH), export_onnx),
    "openvino": Stack("float32", openvino_run("float32"), ("openvino", "nncf", *PYTORCH), export_openvino),
    "openvino bf16": Stack("bf16", openvino_run("bf16"), ("openvino", "nncf", *PYTORCH), export_openvino),
    "openvino int8": Stack("int8", openvino_run("int8"), ("openvino", "nncf", *PYTORCH), export_openvino),
    "ctranslate2": Stack("float32", ctranslate2_run("float32"), ("ctranslate2",), export_ctranslate2),
    "ctranslate2 int8": Stack("int8", ctranslate2_run("int8"), ("ctranslate2",), export_ctranslate2),
}

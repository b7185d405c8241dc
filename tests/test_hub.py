"""weights/hub.py: names and folders, a Hub played by a server on this machine, and (marked hub) the real one."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from embed_folders import laid_over

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "~/absent", "a/b/c", "absent", "org/na me", ""])
def test_what_is_neither_a_folder_nor_a_repository(name: str) -> None:
    with pytest.raises(Error, match="folder"):
        tinyroberta.load(name) if name else tinyroberta.load(Path("absent"))


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "notes"])
def test_a_file_of_no_weights_is_told(tmp_path: Path, name: str) -> None:
    publish(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(Error, match=r"is a file; give the folder .* \(\.safetensors, \.bin"):
        tinyroberta.load(tmp_path / name)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that plays the Hub for repositories under a folder: ROOT/org/name/REVISION/files."""
    root = tmp_path / "hub"

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0].replace("%2F", "/").strip("/")
            renamed = re.match(r"(api/models/)?(roberta-base)(?=/|$)", path)
            if renamed:  # as the Hub answers for what was published without an owner
                where = f"/{renamed[1] or ''}FacebookAI/{path[renamed.start(2) :]}"
                return self.send(307, b"", body, {"Location": where})
            if path.startswith("api/models/"):
                return self.describe(path.removeprefix("api/models/"))
            repository, _, rest = path.partition("/resolve/")
            if not (root / repository).is_dir():
                return self.send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
            revision, name = re.fullmatch(r"(refs/pr/\d+|[^/]+)/(.*)", rest).groups()
            if not (root / repository / revision).is_dir():
                return self.send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
            file, commit = root / repository / revision / name, COMMIT[:-1] + str(len(revision) % 10)
            if not file.is_file():
                return self.send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            content = file.read_bytes()
            etag = f'"{revision}-{name}"'.replace("/", "-")
            return self.send(200, content, body, {"ETag": etag, "X-Repo-Commit": commit})

        def describe(self, path: str) -> None:
            name, _, revision = path.partition("/revision/")
            repository = root / name.removesuffix("/refs")
            if not repository.is_dir():
                return self.send(404, b"", True, {"X-Error-Code": "RepoNotFound"})
            if name.endswith("/refs"):
                pulls = [{"name": "x", "ref": f"refs/pr/{p.name}", "targetCommit": COMMIT} for p in repository.glob("refs/pr/*")]
                content = {"branches": [], "converts": [], "tags": [], "pullRequests": pulls}
                return self.send(200, json.dumps(content).encode(), True)
            folder = repository / (revision or "main")
            if not folder.is_dir():
                return self.send(404, b"", True, {"X-Error-Code": "RevisionNotFound"})
            files = [
                {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
                for file in folder.rglob("*")
                if file.is_file()
            ]
            return self.send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), True)

        def send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()


def publish(folder: Path, shard_size: int = 10**9) -> RobertaPreLayerNormForMaskedLM:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    model = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**sizes), seed=5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def load_there(endpoint: str, home: Path, name: str, offline: bool = False, **arguments: object) -> tuple[str, str]:
    """Load in a fresh process, since huggingface_hub reads its environment when imported; returns its out and err."""
    script = (
        "import sys, warnings, tinyroberta\n"
        "try: model = tinyroberta.load(sys.argv[1], **eval(sys.argv[2]))\n"
        "except tinyroberta.Error as error: print('Error:', error)\n"
        "else: print(repr(float(model([[0, 7, 2]]).logits.astype('f8').sum())))\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", script, name, repr(arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip(), done.stderr


def expected(model: RobertaPreLayerNormForMaskedLM) -> str:
    return repr(float(np.asarray(model([[0, 7, 2]]).logits).astype("f8").sum()))


@pytest.mark.parametrize("shard_size", [10**9, 900])
def test_a_repository_then_offline(hub: tuple[str, Path], tmp_path: Path, shard_size: int) -> None:
    endpoint, root = hub
    answer = expected(publish(root / "org" / "name" / "main", shard_size))
    assert load_there(endpoint, tmp_path, "org/name")[0] == answer
    assert load_there("http://127.0.0.1:9", tmp_path, "org/name", offline=True)[0] == answer
    other = load_there("http://127.0.0.1:9", tmp_path, "org/other", offline=True)[0]
    assert other.startswith("Error: org/other")
    assert "HF_HUB_OFFLINE" in other
    unreachable = "http://127.0.0.1:9"
    assert load_there(unreachable, tmp_path, "org/name")[0] == answer
    assert load_there(unreachable, tmp_path, "org/other")[0].startswith("Error: org/other")


@pytest.mark.parametrize("cached", ["roberta-base", "FacebookAI/roberta-base"])
def test_a_canonical_name_by_the_redirect_then_offline_by_either(hub: tuple[str, Path], tmp_path: Path, cached: str) -> None:
    endpoint, root = hub
    main = root / "FacebookAI" / "roberta-base" / "main"
    answer = expected(publish(main))
    (main / "generation_config.json").write_text('{"max_length": 9}')
    assert load_there(endpoint, tmp_path, cached)[0] == answer
    assert [*tmp_path.glob(f"hub/models--{cached.replace('/', '--')}/snapshots/*/generation_config.json")]
    for name in ("roberta-base", "FacebookAI/roberta-base"):
        assert load_there("http://127.0.0.1:9", tmp_path, name, offline=True)[0] == answer
        assert load_there("http://127.0.0.1:9", tmp_path, name)[0] == answer
    for name in ("someone/roberta-base", "roberta-large"):
        assert load_there("http://127.0.0.1:9", tmp_path, name, offline=True)[0].startswith(
            f"Error: {name}: config.json is not in"
        )


def test_a_pull_request_holds_the_safetensors(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, root = hub
    publish(root / "org" / "name" / "refs" / "pr" / "2")
    main = root / "org" / "name" / "main"
    main.mkdir()
    (main / "config.json").write_text((root / "org" / "name" / "refs" / "pr" / "2" / "config.json").read_text())
    (root / "org" / "name" / "refs" / "pr" / "3").mkdir()
    out, err = load_there(endpoint, tmp_path, "org/name")
    assert not out.startswith("Error")
    assert "refs/pr/2" in err
    assert load_there(endpoint, tmp_path, "org/name", revision="refs/pr/2")[0] == out
    assert load_there("http://127.0.0.1:9", tmp_path, "org/name", offline=True)[0] == out


@pytest.mark.parametrize("folder", ["model", "model_sharded"])
def test_a_repository_without_safetensors(hub: tuple[str, Path], tmp_path: Path, folder: str) -> None:
    endpoint, root = hub
    files = Path(__file__).parent / "torch_files" / folder
    shutil.copytree(files, root / "org" / "name" / "main")
    answer = expected(tinyroberta.load(files))
    assert load_there(endpoint, tmp_path, "org/name")[0] == answer
    assert load_there("http://127.0.0.1:9", tmp_path, "org/name", offline=True)[0] == answer
    if folder == "model_sharded":
        (root / "org" / "name" / "main" / "pytorch_model-00002-of-00003.bin").unlink()
        assert "holds no pytorch_model-00002-of-00003.bin" in load_there(endpoint, tmp_path / "other", "org/name")[0]


def test_convert_keeps_what_lies_beside_the_weights_there_too(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, root = hub
    main = root / "org" / "name" / "main"
    publish(main)
    kept = (
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "vocab.txt",
        "README.md",
        "generation_config.json",
    )
    for name in (*kept, "pytorch_model.bin", "onnx/model.onnx", ".gitattributes"):
        (main / name).parent.mkdir(exist_ok=True)
        (main / name).write_text("{}")
    with (main / "corpus.txt").open("wb") as stream:
        stream.truncate(65 * 2**20)
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    for made, offline in ((tmp_path / "made", "0"), (tmp_path / "again", "1")):
        subprocess.run(
            [sys.executable, "-m", "tinyroberta", "convert", "org/name", str(made)],
            env=environment | {"HF_HUB_OFFLINE": offline}, timeout=120, check=True,
        )  # fmt: skip
        there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
        assert there == {"config.json", "model.safetensors", *kept}
    assert not [path for path in tmp_path.rglob("corpus.txt") if root not in path.parents]


def test_an_embedder_of_a_repository_has_its_modules_there_and_offline(hub: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    endpoint, root = hub
    main = laid_over(root / "org" / "name" / "main", "roberta-dense")
    (main / "corpus.onnx").write_text("another copy")
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    code = "import tinyroberta; print(tinyroberta.Embedder.from_pretrained('org/name', backend='numpy').encode('hello').tolist())"
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"HF_HUB_OFFLINE": offline}, timeout=120, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == tinyroberta.Embedder.from_pretrained(main, backend="numpy").encode("hello").tolist()
    assert not [path for path in tmp_path.rglob("corpus.onnx") if root not in path.parents]


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    publish(tmp_path)
    for load in (tinyroberta.load, RobertaPreLayerNormForMaskedLM.from_pretrained, RobertaPreLayerNormConfig.from_pretrained):
        for path in (tmp_path, tmp_path / "model.safetensors"):
            with pytest.raises(Error, match="leave out 'v1'"):
                load(path, revision="v1")


def test_what_a_hub_does_not_have(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, root = hub
    assert "no such repository" in load_there(endpoint, tmp_path, "org/name")[0]
    publish(root / "org" / "name" / "main")
    assert "no revision" in load_there(endpoint, tmp_path, "org/name", revision="v9")[0]
    (root / "org" / "name" / "main" / "model.safetensors").unlink()
    assert "model.safetensors" in load_there(endpoint, tmp_path, "org/name")[0]


@pytest.mark.hub
def test_published_numbers() -> None:
    """andreasmadsen/efficient_mlm_m0.40, the figures of transformers' own integration tests."""
    ids = [[0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2]]
    model = tinyroberta.load("andreasmadsen/efficient_mlm_m0.40")
    logits = model(ids).logits
    assert logits.shape == (1, 11, 50265)
    wanted = [[40.4880, 18.0199, -5.2367], [-1.8877, -4.0885, 10.7085], [-2.2613, -5.6110, 7.2665]]
    np.testing.assert_allclose(logits[0, :3, :3], wanted, rtol=1e-4, atol=1e-4)
    base = tinyroberta.RobertaPreLayerNormModel.from_pretrained("andreasmadsen/efficient_mlm_m0.40")
    wanted = [[0.0208, -0.0356, 0.0237], [-0.1569, -0.0411, -0.2626], [0.1879, 0.0125, -0.0089]]
    np.testing.assert_allclose(base(ids).last_hidden_state[0, :3, :3], wanted, rtol=1e-4, atol=1e-4)

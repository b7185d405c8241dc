"""tinyroberta serve: a model behind HTTP."""

import argparse
import os

from ..backends import PRECISIONS
from ..errors import Error
from .parsing import positive

LIMITS = {
    "max_body_bytes": "of a request's body (2000000)",
    "max_client_batch_size": "texts of a request (2048)",
    "max_concurrent_requests": "under way at once; one more gets 429 (512)",
    "max_batch_tokens": "through the model together (1024; 16384 on a GPU)",
    "max_queue_tokens": "of a request, and of all that wait for the model; more get 429 (262144)",
    "body_seconds": "for a request's body to arrive (20)",
    "request_seconds": "for a request's answer (120)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="a checkpoint's folder, file or Hub repository (the embedded model)"
    )
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    parser.add_argument("--backend", help="cpu, numpy or cupy (cpu where it runs)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="highest", help="of products: load's matmul_precision (highest)"
    )
    parser.add_argument("--reproducible", action="store_true", help="the same bits on every machine")
    parser.add_argument("--threads", type=positive, metavar="N", help="for the model (all)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 is every one (127.0.0.1)")
    parser.add_argument("--port", type=port, default=8080, help="0 is any that is free (8080)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="what requests must have as Authorization: Bearer KEY; also TINYROBERTA_API_KEY (none)"
    )
    parser.add_argument(
        "--auto-truncate", action="store_true", help="cut texts that are too long unless a request says otherwise"
    )
    for name, told in LIMITS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, metavar="N", help=told)


def port(text: str) -> int:
    """A port's number, as argparse's type."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 0 to 65535")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Serve a model over HTTP, by text-embeddings-inference's contract and OpenAI's /v1/embeddings, until SIGTERM or Ctrl-C."""
    try:
        from ..serve.app import Server, Settings
        from ..serve.process import listen, run
    except ImportError as error:
        raise Error(f"serving needs {error.name}: pip install 'tinyroberta[serve]'") from error
    from ..serve.explore import Explorer
    from ..serve.kinds import budget_of, open_served

    key = arguments.api_key if arguments.api_key is not None else os.environ.get("TINYROBERTA_API_KEY")
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise Error("the API key must be printable ASCII characters, at least one")
    listener = listen(arguments.host, arguments.port)
    running = {name: getattr(arguments, name) for name in ("backend", "reproducible", "threads")}
    served = open_served(arguments.model, arguments.revision, matmul_precision=arguments.precision, **running)
    explorer = Explorer(arguments.model, arguments.revision, matmul_precision=arguments.precision, **running)
    given = {name: getattr(arguments, name) for name in LIMITS if getattr(arguments, name) is not None}
    settings = Settings(api_key=key, auto_truncate=arguments.auto_truncate, **{"max_batch_tokens": budget_of(served)} | given)
    served.warm()
    host, number = listener.getsockname()[:2]
    print(f"serving {served.name} ({served.kind}) on http://{f'[{host}]' if ':' in host else host}:{number}", flush=True)
    run(Server(served, settings, explorer), listener)
    return 0

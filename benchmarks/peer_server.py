"""sentence-transformers behind Starlette and uvicorn, as one would write it who has no better server: benchmarks.serve's peer.

    pip install sentence-transformers starlette 'uvicorn[standard]'
    python peer_server.py FOLDER --port 8000 [--dtype bfloat16]

It speaks /v1/embeddings. Requests that wait go through the model together, in one thread that has all CPUs: as many as are there,
up to MOST texts; after a pass of several texts the clients just answered have a few milliseconds to ask again, while a client
alone never waits. encode sorts the texts by length; its batches of 8 texts were the fastest here of 2 to 64, because they pad
little. More than WAITING requests get 429. torch.compile is not in it: a new shape of texts costs seconds of compilation.
It imports nothing of this repository, so that it runs in any Python that has what it needs.
"""

import argparse
import asyncio
import base64
import json
import queue
import threading
import time
from typing import Any

MOST, PADDED = 64, 8  # texts of a call of encode, and of one of its batches
WINDOW = 0.004  # seconds that clients just answered have to ask again
WAITING = 512  # requests


class Batcher:
    """The thread that owns the model, and the requests that wait for it: texts, and who is told the vectors."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.queue: queue.SimpleQueue[tuple[list[str], asyncio.Future[Any], asyncio.AbstractEventLoop]] = queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Pass after pass."""
        import torch

        last = 1
        with torch.inference_mode():
            while True:
                batch = [self.queue.get()]
                end = time.perf_counter() + WINDOW
                while (count := sum(len(texts) for texts, _, _ in batch)) < MOST:
                    try:
                        batch.append(self.queue.get(timeout=max(0.0, end - time.perf_counter()) if count < last else 0))
                    except queue.Empty:
                        break
                last = count
                texts = [text for some, _, _ in batch for text in some]
                try:
                    found: Any = self.model.encode(texts, batch_size=PADDED, show_progress_bar=False)
                except Exception as error:
                    found = error
                at = 0
                for some, future, loop in batch:
                    own = found if isinstance(found, Exception) else found[at : at + len(some)]
                    at += len(some)
                    loop.call_soon_threadsafe(tell, future, own)


def tell(future: "asyncio.Future[Any]", found: Any) -> None:
    """Its vectors, or its error, to who still waits."""
    if not future.done():
        future.set_exception(found) if isinstance(found, Exception) else future.set_result(found)


def app(batcher: Batcher) -> Any:
    """The server as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    under_way = 0

    async def embeddings(request: Request) -> Response:
        nonlocal under_way
        if under_way >= WAITING:
            return Response('{"error": "busy"}', 429, {"retry-after": "1"}, "application/json")
        under_way += 1
        try:
            asked = json.loads(await request.body())
            texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Any] = loop.create_future()
            batcher.queue.put((texts, future, loop))
            vectors = await future
        finally:
            under_way -= 1
        coded = asked.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": base64.b64encode(x).decode() if coded else x.tolist()}
            for n, x in enumerate(vectors)
        ]
        body = {"object": "list", "data": data, "model": asked.get("model")}
        return Response(json.dumps(body), media_type="application/json")

    return Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description="sentence-transformers as a server of /v1/embeddings.")
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    import sentence_transformers
    import torch
    import uvicorn

    if options.threads:
        torch.set_num_threads(options.threads)
    arguments = {"model_kwargs": {"torch_dtype": getattr(torch, options.dtype)}} if options.dtype != "float32" else {}
    model = sentence_transformers.SentenceTransformer(options.folder, device="cpu", **arguments)
    uvicorn.run(app(Batcher(model)), port=options.port, log_level="warning", access_log=False, backlog=2048)


if __name__ == "__main__":
    main()

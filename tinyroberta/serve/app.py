"""Requests from the first byte of a body to the last of an answer: what is let in, how it is refused, what becomes of failures.

A request is refused before its body is read where too many are under way; then it is read up to a limit of bytes and of seconds,
made a Plan in a thread, put into the model's queue, and answered when that is done; or its client is gone, or its time is over.
"""

import asyncio
import contextlib
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..terminal import tell
from .contracts import ROUTES, Body, Limits, Plan, Refused, model_type, written
from .explore import PAGE, Explorer
from .kinds import Served
from .metrics import Metrics
from .packing import Full, Worker

Answer = Callable[[Request], Awaitable[Response]]
Make = Callable[[Served, Body, Limits], Plan]
LINGER_BYTES, LINGER_SECONDS = 16 << 20, 2.0  # of a refused body that are read and dropped, so that its sender reads the answer
BODIES = 64  # how many bodies of the greatest size may be in memory at once
SMALL = 1 << 16  # bytes of JSON that are parsed where they arrive; more would keep the others waiting
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
GONE = 499  # nginx's status for a client that did not wait


@dataclass
class Settings:
    """The server's limits."""

    api_key: str | None = None
    max_body_bytes: int = 2_000_000
    max_client_batch_size: int = 2048
    max_concurrent_requests: int = 512
    max_batch_tokens: int = 1024
    max_queue_tokens: int = 1 << 18
    body_seconds: float = 20.0
    request_seconds: float = 120.0
    auto_truncate: bool = False


class Last(Response):
    """An answer to a request whose body is not read: the connection ends, when its client has had time to see why."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        dropped, more = 0, True
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while more and dropped < LINGER_BYTES:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def error_body(path: str, kind: str, told: str, status: int) -> bytes:
    """An error as the route's clients read it: OpenAI's `error`, beside text-embeddings-inference's fields; or those alone."""
    if path.startswith("/v1/"):
        inner = {"message": told, "type": kind, "param": None, "code": status}
        return written({"error": inner, "message": told, "code": status, "error_type": kind})
    return written({"error": told, "error_type": kind})


class Server:
    """A served checkpoint, its worker, and what is under way."""

    def __init__(self, served: Served, settings: Settings, explorer: Explorer) -> None:
        self.served, self.settings, self.metrics = served, settings, Metrics()
        self.posts = {**ROUTES, **explorer.routes()}
        self.worker = Worker(served.forward, settings.max_batch_tokens, settings.max_queue_tokens, self.metrics)
        self.limits = Limits(settings.max_client_batch_size, settings.auto_truncate)
        self.threads = ThreadPoolExecutor(4, "requests")
        self.under_way = 0  # requests whose bodies are read
        self.most_connections = sys.maxsize
        self.bytes = 0  # of their bodies, and of those that are being read

    def app(self) -> Starlette:
        """The server as an ASGI application."""
        gets = {
            "/": self.page,
            "/health": self.health,
            "/ping": self.health,
            "/info": self.info,
            "/metrics": self.show_metrics,
            "/v1/models": self.models,
        }
        routes = [Route(path, self.guarded(path, answer), methods=["GET"]) for path, answer in gets.items()]
        routes += [Route(path, self.guarded(path, self.posted(make)), methods=["POST"]) for path, make in self.posts.items()]
        return Starlette(routes=routes, exception_handlers={HTTPException: self.unknown}, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """What ends with the server: the worker, when it has done what it accepted."""
        yield
        await asyncio.to_thread(self.worker.close)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def guarded(self, path: str, answer: Answer) -> Answer:
        """A route's function, with what it raises as JSON, and its count and duration in the metrics."""

        async def run(request: Request) -> Response:
            start = time.perf_counter()
            self.metrics.count("te_request_count", f'method="{path}"')
            try:
                self.check_key(request, path)
                response = await answer(request)
            except Refused as error:
                return self.refused(path, error)
            except ClientDisconnect:
                self.metrics.count("te_request_failure", 'err="Gone"')
                return Response(status_code=GONE)
            except Exception as error:
                with contextlib.suppress(OSError, ValueError):  # who started the server may have closed what it says
                    tell(f"{path} failed: {type(error).__name__}: {error}")
                return self.refused(path, Refused("Backend", "Inference failed", 500))
            self.metrics.count("te_request_success", f'method="{path}"')
            self.metrics.observe("te_request_duration", time.perf_counter() - start)
            return response

        return run

    def refused(self, path: str, error: Refused) -> Response:
        """The answer to a request that gets none."""
        self.metrics.count("te_request_failure", f'err="{error.kind}"')
        status = error.status
        body = error_body(path, error.kind, error.told, status)
        kind = Last if status in (401, 408, 413, 415) else Response
        return kind(body, status, error.headers, "application/json")

    async def unknown(self, request: Request, error: Exception) -> Response:
        """A path or method that is none of the server's."""
        assert isinstance(error, HTTPException)
        told = "there is no such route" if error.status_code == 404 else error.detail
        body = error_body(request.scope["path"], "Validation", told, error.status_code)
        return Response(body, error.status_code, error.headers, "application/json")

    def check_key(self, request: Request, path: str) -> None:
        """Raise Refused where a key is asked for and not given."""
        key = self.settings.api_key
        if key is None or path in ("/health", "/ping") or (path == "/" and request.method != "POST"):
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {key}".encode()):
            told = "the API key is missing or wrong: send the header Authorization: Bearer KEY"
            raise Refused("Validation", told, 401, {"www-authenticate": "Bearer"})

    # GET

    async def health(self, _: Request) -> Response:
        """200 while the worker lives."""
        if not self.worker.thread.is_alive():
            raise Refused("Unhealthy", "the model's thread has ended")
        return Response()

    async def info(self, _: Request) -> Response:
        """What is served, and the limits."""
        settings = self.settings
        told = {
            "model_id": self.served.name,
            "model_sha": None,
            "model_dtype": self.served.task.model.settings.dtype,
            "served_model_name": self.served.name,
            "model_type": model_type(self.served),
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": self.served.longest,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
        return Response(written(told), media_type="application/json")

    async def page(self, _: Request) -> Response:
        """The page that explores a model; it holds nothing of it, and asks for a key where one is needed."""
        return Response(PAGE.read_bytes(), headers=PAGE_HEADERS, media_type="text/html")

    async def models(self, _: Request) -> Response:
        """OpenAI's list of models, of one."""
        entry = {"id": self.served.name, "object": "model", "created": 0, "owned_by": "tinyroberta"}
        return Response(written({"object": "list", "data": [entry]}), media_type="application/json")

    async def show_metrics(self, _: Request) -> Response:
        """Prometheus' page."""
        gauges = {
            "te_queue_size": ("Requests that wait for the model.", len(self.worker.jobs)),
            "te_queue_tokens": ("Tokens that wait for the model.", self.worker.waiting),
            "te_requests_under_way": ("Requests that are not answered yet.", self.under_way),
        }
        return Response(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    # POST

    def posted(self, make: Make) -> Answer:
        """A route's answer to a request with a body."""

        async def answer(request: Request) -> Response:
            self.check_room()
            size = [0]
            try:
                body = await self.body(request, size)
                self.check_room()
                self.under_way += 1
                try:
                    return await self.answered(request, make, body)
                finally:
                    self.under_way -= 1
            finally:
                self.bytes -= size[0]

        return answer

    def full(self) -> bool:
        """Whether as many requests are under way as may be."""
        return self.under_way >= self.settings.max_concurrent_requests or self.bytes >= BODIES * self.settings.max_body_bytes

    def turned_away(self, path: str) -> Response:
        """The answer to a request that is refused at its head."""
        self.metrics.count("te_request_count", f'method="{path}"')
        return self.refused(path, self.overloaded(self.worker.seconds()))

    def check_room(self) -> None:
        """Raise Refused where as many requests are under way as may be."""
        if self.full():
            raise self.overloaded(self.worker.seconds())

    def overloaded(self, seconds: int) -> Refused:
        """What a request is told for which there is no room."""
        return Refused("Overloaded", "Model is overloaded", headers={"retry-after": str(seconds)})

    async def body(self, request: Request, size: list[int]) -> bytes:
        """A body of JSON, at most as long as it may be, within the time that it has; `size` is what it takes."""
        settings = self.settings
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise Refused("Validation", "a request must have the header Content-Type: application/json", 415)
        told = f"the body is longer than {settings.max_body_bytes} bytes"
        if int(request.headers.get("content-length", 0)) > settings.max_body_bytes:
            raise Refused("Validation", told)
        parts = []
        try:
            async with asyncio.timeout(settings.body_seconds):
                async for part in request.stream():
                    parts.append(part)
                    size[0] += len(part)
                    self.bytes += len(part)
                    if size[0] > settings.max_body_bytes:
                        raise Refused("Validation", told)
        except TimeoutError:
            raise Refused("Validation", f"the body did not arrive within {settings.body_seconds:g} seconds", 408) from None
        return b"".join(parts)

    async def answered(self, request: Request, make: Make, body: bytes) -> Response:
        """A body's answer."""
        start = time.perf_counter()
        if len(body) > SMALL:
            content = await self.threaded(parsed, body)
        else:
            content = parsed(body)
        plan = await self.threaded(make, self.served, content, self.limits)
        self.metrics.observe("te_request_tokenization_duration", time.perf_counter() - start)
        found = None
        if plan.job is not None:
            self.metrics.observe("te_request_input_length", *map(len, plan.job.windows))
            if plan.job.tokens > self.settings.max_queue_tokens:
                told = f"the texts have {plan.job.tokens} tokens; a request may have {self.settings.max_queue_tokens}"
                raise Refused("Validation", told)
            try:
                self.worker.submit(plan.job)
            except Full as full:
                raise self.overloaded(full.seconds) from None
            found = await self.awaited(request, plan.job, self.settings.request_seconds - (time.perf_counter() - start))
        return Response(await self.threaded(lambda: b"".join(plan.render(found))), media_type="application/json")

    async def awaited(self, request: Request, job: Any, seconds: float) -> Any:
        """A job's result; raises ClientDisconnect where nobody waits for it any more, and Refused when its time is over."""
        result = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((result, gone), timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                raise ClientDisconnect
            told = f"there was no answer within {self.settings.request_seconds:g} seconds"
            raise Refused("Overloaded", told, 503, {"retry-after": str(self.worker.seconds())})
        finally:
            gone.cancel()
            if not result.done():
                job.abandoned = True
                result.cancel()

    async def threaded(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a function gives, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *given)


async def disconnected(request: Request) -> None:
    """Wait until a client, whose whole body is read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parsed(body: bytes) -> Body:
    """A body's JSON object; raises Refused on anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("Validation", f"the body is not valid JSON: {str(error)[:80]}", 400) from None
    if not isinstance(content, dict):
        raise Refused("Validation", "the body must be a JSON object", 422)
    return content

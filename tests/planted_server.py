"""The server's process on a model that is slow, or fails, where a text says so.

    python tests/planted_server.py '{"max_concurrent_requests": 4}'    # Settings, and "slow": seconds of a pass

A text that holds "plant a failure" raises; the passes of one that holds "plant a delay" take 0.4 seconds.
"""

import json
import sys
import time
from dataclasses import fields
from typing import Any

from tinyroberta.serve import process
from tinyroberta.serve.app import Server, Settings
from tinyroberta.serve.explore import Explorer
from tinyroberta.serve.kinds import open_served

FAILURE, DELAY = "plant a failure", "plant a delay"
MESSAGE = "planted \x1b[31m\nin red"


def main() -> None:
    given = json.loads(sys.argv[1])
    served = open_served(None, backend="numpy")
    real, decode = served.forward, served.task.tokenizer.decode
    slow = given.pop("slow", 0.0)
    process.HEAD_SECONDS = given.pop("head_seconds", process.HEAD_SECONDS)

    def forward(windows: list[Any]) -> Any:
        texts = " ".join(decode(window.ids) for window in windows)
        if FAILURE in texts:
            raise RuntimeError(MESSAGE)
        time.sleep(slow + 0.4 * (DELAY in texts))
        return real(windows)

    served.forward = forward  # type: ignore[method-assign]
    assert set(given) <= {field.name for field in fields(Settings)}
    listener = process.listen("127.0.0.1", 0)
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    process.run(Server(served, Settings(**{"max_batch_tokens": 1, **given}), Explorer()), listener)


if __name__ == "__main__":
    main()

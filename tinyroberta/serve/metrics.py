"""Counts and durations in Prometheus' text format, under the names that text-embeddings-inference gives them.

(prometheus-client appends _total to the name of every counter, and dashboards look for these.)
"""

import threading
from bisect import bisect_left
from collections.abc import Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
COUNTERS = {
    "te_request_count": "Requests, by route.",
    "te_request_success": "Requests that were answered, by route.",
    "te_request_failure": "Requests that were refused or failed, by kind of error.",
}
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "te_request_duration": ("Seconds from a request's head to its answer.", SECONDS),
    "te_request_tokenization_duration": ("Seconds of reading a request's texts.", SECONDS),
    "te_request_queue_duration": ("Seconds that a request waited for the model.", SECONDS),
    "te_request_inference_duration": ("Seconds from a request's first pass through the model to its last.", SECONDS),
    "te_request_input_length": ("Tokens of a text.", SIZES),
    "te_batch_next_size": ("Texts that went through the model together.", SIZES),
    "te_batch_next_tokens": ("Tokens that went through the model together.", SIZES),
}


class Metrics:
    """What happened since the start."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {name: {} for name in COUNTERS}
        self.buckets = {name: [0] * (len(bounds) + 1) for name, (_, bounds) in HISTOGRAMS.items()}
        self.sums = dict.fromkeys(HISTOGRAMS, 0.0)
        self._lock = threading.Lock()

    def count(self, name: str, label: str) -> None:
        """One more; a label, 'method="/embed"', is never a client's own text."""
        with self._lock:
            self.counts[name][label] = self.counts[name].get(label, 0) + 1

    def observe(self, name: str, *values: float) -> None:
        """One more of each value."""
        bounds = HISTOGRAMS[name][1]
        with self._lock:
            for value in values:
                self.buckets[name][bisect_left(bounds, value)] += 1
                self.sums[name] += value

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The whole page; gauges: (what it is, its value now) by name."""
        lines = []
        with self._lock:
            for name, told in COUNTERS.items():
                lines += [f"# HELP {name} {told}", f"# TYPE {name} counter"]
                lines += [f"{name}{{{label}}} {count}" for label, count in sorted(self.counts[name].items())]
            for name, (told, bounds) in HISTOGRAMS.items():
                lines += [f"# HELP {name} {told}", f"# TYPE {name} histogram"]
                below = 0
                for bound, count in zip((*bounds, "+Inf"), self.buckets[name], strict=True):
                    below += count
                    lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
                lines += [f"{name}_sum {self.sums[name]!r}", f"{name}_count {below}"]
        for name, (told, value) in gauges.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"

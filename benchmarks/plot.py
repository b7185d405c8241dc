"""Pictures of saved results, an .svg beside each: python -m benchmarks.plot [results/*.json ...], by default every one.

cpu-*.json: milliseconds of every run, a panel for each line of work. growth-*.json: cost by tokens, texts and layers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from .cpu import RESULTS

STYLE = {
    "svg.hashsalt": "tinyroberta",  # the same picture from the same figures
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#222222",
}
OURS, PEERS = "#1f5fa8", {"float32": "#9a9a9a", "high": "#9a9a9a", "bf16": "#c9a66b", "int8": "#8fb08c"}
CLASSES = {"float32": "float32", "high": "2e-4", "bf16": "bf16", "int8": "8 bits"}
LINES = {
    "numba": OURS,
    "numpy": "#555555",
    "torch": "#d1622b",
    "openvino": "#7a4fa3",
    "onnxruntime": "#2f8f5b",
    "ctranslate2": "#b03060",
}
TITLES = {"ragged": "32 texts of 8 to 256"}


def title(work: str) -> str:
    """A line of work in words."""
    return TITLES.get(work, work.replace("x", " x "))


def about(result: dict[str, Any]) -> str:
    """The machine, and when it was measured."""
    return f"{result['cpu']}, {result['threads']} threads, {result['path'][0]}; {result['date']}"


def brief(x: float) -> str:
    """Three digits, no more."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def plot_peers(result: dict[str, Any]) -> Any:
    """Bars, a panel for each line of work, runs grouped by class and each class's fastest first."""
    works = result["works"]
    every = {name: row for rows in works.values() for name, row in rows.items()}
    order = {kind: place for place, kind in enumerate(CLASSES)}

    def size(name: str) -> float:
        ratios = [rows[name]["median_ms"] / rows["numba highest"]["median_ms"] for rows in works.values() if name in rows]
        return sum(ratios) / len(ratios)

    names = sorted(every, key=lambda name: (order[every[name]["class"]], size(name)))
    places, place, before = {}, 0.0, every[names[0]]["class"]
    for name in names:
        place += 0.6 if every[name]["class"] != before else 0
        before, places[name] = every[name]["class"], place
        place += 1
    figure, axes = plt.subplots(
        1, len(works), figsize=(2.3 + 1.9 * len(works), 1.3 + 0.23 * place), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (work, rows) in zip(axes[0], works.items(), strict=True):
        times = {name: row["median_ms"] for name, row in rows.items()}
        edge = 1.15 * sorted(times.values())[-3 if len(times) > 6 else -1]  # one that is far slower is cut
        for name, ms in times.items():
            ours = name.startswith("numba")
            axis.barh(places[name], min(ms, edge), height=0.78, color=OURS if ours else PEERS[rows[name]["class"]])
            inside = ms > 0.55 * edge
            axis.annotate(
                brief(ms) + (" \u2192" if ms > edge else ""), (min(ms, edge), places[name]), xytext=(-3 if inside else 3, 0),
                textcoords="offset points", va="center", ha="right" if inside else "left", fontsize=7.5,
                color="white" if inside and ours else "black", fontweight="bold" if ours else "normal",
            )  # fmt: skip
        axis.set_xlim(0, edge)
        axis.set_title(title(work), fontsize=9.5)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks([places[n] for n in names], [f"{n}  ({every[n]['error']:.0e})".replace("e-0", "e-") for n in names])
    axes[0, 0].set_ylim(place - 0.4, -0.6)
    for label in axes[0, 0].get_yticklabels():
        if label.get_text().startswith("numba"):
            label.set_color(OURS)
            label.set_fontweight("bold")
    figure.suptitle(
        f"RoBERTa-PreLayerNorm {result['size']}, milliseconds (error against float64)\n\n", fontsize=11, x=0.01, ha="left"
    )
    figure.text(0.01, 0.985 - 0.26 / figure.get_figheight(), about(result), fontsize=8, color="#555555", va="top")
    return figure


def plot_growth(result: dict[str, Any]) -> Any:
    """Three panels: microseconds a token by tokens, by texts; milliseconds by layers."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    panels = (
        ("tokens", "tokens of one text", "microseconds a token", lambda n, ms: 1e3 * ms / n),
        ("batch", "texts of 128 tokens", "microseconds a token", lambda n, ms: 1e3 * ms / n / 128),
        ("layers", "layers, one text of 128 tokens", "milliseconds", lambda _, ms: ms),
    )
    for axis, (what, across, up, measure) in zip(axes, panels, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for count, rows in result[what].items():
            for name, row in rows.items():
                lines.setdefault(name, []).append((int(count), measure(int(count), row["median_ms"])))
        for name, points in lines.items():
            kind = result[what][str(points[0][0])][name]["class"]
            color = LINES[name.split()[0]]
            style = "--" if kind == "bf16" else "-"
            axis.plot(*zip(*points, strict=True), style, color=color, marker="o", markersize=3, label=name,
                      linewidth=2.2 if name.startswith("numba") else 1.3)  # fmt: skip
        ticks = [int(count) for count in result[what]]
        if what == "layers":
            axis.set_xticks(ticks)
        else:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1], [str(t) for t in ticks[:: 2 if len(ticks) > 8 else 1]])
        if what != "tokens":
            axis.set_ylim(0)
        else:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
            axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.grid(axis="y", which="both" if what == "tokens" else "major", color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
    axes[2].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Cost of RoBERTa-PreLayerNorm base\n{about(result)}", fontsize=9.5, x=0.01, ha="left")
    return figure


def draw(path: Path) -> Path | None:
    """The picture of one result; None for a kind that has none."""
    kind = path.name.split("-")[0]
    plots = {"cpu": plot_peers, "growth": plot_growth}
    if kind not in plots:
        return None
    with plt.rc_context(STYLE):
        figure = plots[kind](json.loads(path.read_text()))
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)
    return path.with_suffix(".svg")


def main(paths: list[Path]) -> None:
    for path in paths:
        if (picture := draw(path)) is not None:
            print(f"written to {picture}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json")))

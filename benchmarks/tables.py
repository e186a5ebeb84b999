"""Write the tables in README and docs from the JSON of the benchmarks: ``python -m benchmarks.tables``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.coding_tables import coding_tables
from benchmarks.understand_tables import understand_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_NETWORKS = ("LeNet-300-100", "LeNet-5", "ResNet", "LSTM", "MiniLM", "g2p")


def main() -> None:
    tables = {
        "pipeline": _pipeline(json.loads((RESULTS / "pipeline.json").read_text(encoding="utf-8"))),
        "sparse_linear": _sparse_linear(json.loads((RESULTS / "sparse_linear.json").read_text(encoding="utf-8"))),
    }
    families = _rows_of(RESULTS / "families.json")
    tables |= _families(families) | _presets(families)
    if (RESULTS / "runtime.json").is_file():
        tables |= _runtime(json.loads((RESULTS / "runtime.json").read_text(encoding="utf-8")))
    if (RESULTS / "training.json").is_file():
        tables |= _training(json.loads((RESULTS / "training.json").read_text(encoding="utf-8")))
    if (RESULTS / "pretrained.json").is_file():
        pretrained = json.loads((RESULTS / "pretrained.json").read_text(encoding="utf-8"))["rows"]
        tables |= _pretrained(pretrained) | _practice(pretrained)
    if (RESULTS / "coding.json").is_file():
        tables |= coding_tables(json.loads((RESULTS / "coding.json").read_text(encoding="utf-8")), _table)
    if (RESULTS / "understand.json").is_file():
        found = json.loads((RESULTS / "understand.json").read_text(encoding="utf-8"))
        tables |= understand_tables(found, _table)
    documents = ("which-method", "presets", "runtime", "training", "pretrained", "coding")
    documents += ("description-length", "robustness", "exemplars")
    for file in (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in documents)):
        text = file.read_text(encoding="utf-8")
        for name, table in tables.items():
            pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
        file.write_text(text, encoding="utf-8")


def _pipeline(document: dict[str, Any]) -> str:
    lines = [
        "| network | family | what was done | bytes | smaller | dense → compressed | lost | speed |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in document["summary"]:
        mark = "*" if row["breaking"] else "**" if row["family"] == "composed" else ""
        cells = (
            row["network"],
            row["family"],
            row["name"],
            f"{row['file_bytes']:,.0f}",
            f"{row['ratio']:.1f}x",
            f"{row['dense_accuracy']:.2%} → {row['accuracy']:.2%}",
            f"{row['points_lost']:+.2f}",
            f"{row['faster_64']:.1f}x",
        )
        lines.append("| " + " | ".join(f"{mark}{c}{mark}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, words: int) -> str:
    """Markdown; the first ``words`` columns hold words, the others numbers."""
    rule = ["---" if i < words else "--:" for i in range(len(head))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, tuple(rule), *rows))


def _runtime(document: dict[str, Any]) -> dict[str, str]:
    """Whole networks, layers by sparsity, and the best kernel of each kind of value for a vector."""

    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

    peers = ("torch", "onnxruntime", "openvino", "deepsparse", "onnxruntime_int8", "openvino_bf16")
    head = ("network", "zeros", "batch", "threads", "ours, ms", "PyTorch", "ONNX Runtime", "OpenVINO", "DeepSparse")
    head += ("ONNX int8", "OpenVINO bf16", "speed-up", "weights", "`lower`, s", "error")
    rows = []
    for row in document["rows"]:
        plain = (row["format"], row["dtype"]) == ("unstructured", "fp32")
        extra = "" if plain else f", {row['format']}" if row["dtype"] == "fp32" else f", {row['dtype']}"
        rows.append(
            (
                row["network"],
                f"{row['sparsity']:.0%}{extra}",
                str(row["batch"]),
                str(row["threads"]),
                f"**{ms(row['ms'])}**",
                *(ms(row[f"{peer}_ms"]) for peer in peers),
                f"**{row['speed_up']:.2f}x**",
                f"{row['resident_weight_bytes'] / row['dense_weight_bytes']:.3f}",
                f"{row['lower_cold_s']:.1f}, {row['lower_warm_s']:.1f}",
                f"{row['max_rel_err']:.0e}",
            )
        )
    layers: dict[tuple[str, str], dict[float, str]] = {}
    for row in document["layers"]:
        key = (f"{row['shape'][0]} × {row['shape'][1]}", row["format"])
        layers.setdefault(key, {})[row["sparsity"]] = f"{row['gflops']:.0f} ({row['fraction_of_peak']:.0%})"
    levels = sorted({s for found in layers.values() for s in found})
    cells = [(*key, *(found.get(s, "–") for s in levels)) for key, found in layers.items()]
    titles = ("shape", "zeros lie", *(f"{s:.0%}: GFLOP/s (of peak)" for s in levels))
    vectors: dict[str, dict[float, str]] = {}
    for row in document["vectors"]:
        text = f"{row['speed_up']:.1f}x, {row['resident_fraction']:.3f}"
        vectors.setdefault(row["format"], {})[row["sparsity"]] = text
    lines = [(kind, *(found.get(s, "–") for s in levels)) for kind, found in vectors.items()]
    return {
        "runtime": _table(head, rows, words=1),
        "runtime_layers": _table(titles, cells, words=2),
        "runtime_vectors": _table(("kernel", *(f"{s:.0%}: speed-up, weights" for s in levels)), lines, words=1),
    }


def _training(document: dict[str, Any]) -> dict[str, str]:
    """Steps beside dense PyTorch and SparseLab; whole runs."""

    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    head = ("network", "zeros", "threads", "ours, ms", "dense PyTorch", "SparseLab", "speed-up", "state", "peak memory")
    steps = [
        (
            row["network"],
            f"{row['sparsity']:.0%}",
            str(row["threads"]),
            f"**{ms(row['ms'])}**",
            ms(row["dense_ms"]),
            ms(row["sparselab_ms"]),
            f"**{row['dense_ms'] / row['ms']:.1f}x**",
            f"{row['state_bytes'] / row['dense_state_bytes']:.3f}",
            f"{row['peak_bytes'] / row['dense_peak_bytes']:.2f}",
        )
        for row in document["steps"]
    ]
    tables = {"training_steps": _table(head, steps, words=1)}
    whole = [row for row in document["runs"] if "goal" not in row]
    followed = [row for row in document["runs"] if "goal" in row]
    return tables | (_training_runs(whole) if whole else {}) | (_training_times(followed) if followed else {})


def _points(values: list[float], *, sign: bool = False) -> str:
    """Mean of fractions in percent, ± its standard error where there are several."""
    error = f" ± {100 * stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{'+' if sign else ''}.2f}{error}"


def _training_runs(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Accuracy over sparsity, its gap to training accuracy, and how far methods that follow each other lie apart."""
    levels = sorted({row["sparsity"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["sparsity"]), {})[row["seed"]] = row
    dense = {row["seed"]: (row["dense_accuracy"], row["dense_train_accuracy"]) for row in rows}

    def gap(pairs: list[tuple[float, float]]) -> str:
        test, train = (mean(values) for values in zip(*pairs, strict=True))
        return f"{100 * train:.2f} ({100 * (train - test):+.2f})"

    line = _points([test for test, _ in dense.values()])
    accuracies = [("dense", *(line for _ in levels))]
    gaps = [("dense", *(gap(list(dense.values())) for _ in levels))]
    order = []
    for i, method in enumerate(methods):
        seeds = [found.get((method, level), {}) for level in levels]
        accuracies.append((method, *(_points([r["accuracy"] for r in of.values()]) if of else "–" for of in seeds)))
        pairs = [[(r["accuracy"], r["train_accuracy"]) for r in of.values()] for of in seeds]
        gaps.append((method, *(gap(of) if of else "–" for of in pairs)))
        if i:
            before = [found.get((methods[i - 1], level), {}) for level in levels]
            cells = [_apart(upper, lower) for upper, lower in zip(before, seeds, strict=True)]
            order.append((f"{methods[i - 1]} − {method}", *cells))
    titles = tuple(f"{level:.0%}" for level in levels)
    return {
        "training_runs": _table(("test accuracy, %, at zeros of", *titles), accuracies, words=1),
        "training_gaps": _table(("training accuracy, % (less test accuracy)", *titles), gaps, words=1),
        "training_order": _table(("points between methods", *titles), order, words=1),
    }


def _apart(upper: dict[int, dict[str, Any]], lower: dict[int, dict[str, Any]]) -> str:
    """Difference over common seeds; in italics where it is within two standard errors of nothing, or not known."""
    apart = [upper[seed]["accuracy"] - lower[seed]["accuracy"] for seed in upper if seed in lower]
    if not apart:
        return "–"
    clear = len(apart) > 1 and abs(mean(apart)) > 2 * stdev(apart) / len(apart) ** 0.5
    return _points(apart, sign=True) if clear else f"*{_points(apart, sign=True)}*"


def _training_times(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Time to the accuracy of dense training less a margin, medians over seeds."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["method"], row["sparsity"]), []).append(row)
    lines = []
    for (network, method, sparsity), found in groups.items():
        times, first = [row["seconds"] for row in found], found[0]
        dense = first["dense_seconds"]
        reached = None if None in times else median(times)
        ratio = f"**{reached / dense:.2f}**" if reached is not None and dense is not None else "–"
        cells = (
            _points([row["accuracy"] for row in found]),
            _points([row["dense_accuracy"] for row in found]),
            f"{100 * first['goal']:.2f}",
            f"{reached:.0f}" if reached is not None else "never" if not any(times) else "not all seeds",
            "never" if dense is None else f"{dense:.0f}",
            ratio,
            f"{mean(row['step_ratio'] for row in found):.2f}",
        )
        lines.append((network, method, f"{sparsity:.0%}", str(len(found)), *cells))
    head = ("network", "method", "zeros", "seeds", "test accuracy, %", "dense", "goal", "seconds to it", "dense, s")
    return {"training_times": _table((*head, "time of dense", "step of dense"), lines, words=2)}


def _pretrained(rows: list[dict[str, Any]]) -> dict[str, str]:
    """A line per network and recipe, with all that was measured of it."""
    recipes: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        recipes.setdefault((row["network"], row["method"], row["setting"]), []).append(row)
    lines = []
    for names, found in recipes.items():
        first = found[0]
        cells = (
            "; ".join(f"{row['metric']} {row['value']:.4g} ({row['dense_value']:.4g})" for row in found),
            f"{first['file_bytes']:,}",
            f"{first['dense_bytes'] / first['file_bytes']:.1f}x",
            f"{first['latency_ms']:.3g} ({first['dense_latency_ms']:.3g})",
            str(first["samples"] or "none"),
            f"{first['seconds']:,.0f}",
            f"{(first['peak_rss_bytes'] - first['rss_before_bytes']) / 1e6:,.0f}",
        )
        lines.append((*names, *cells))
    head = ("network", "method", "setting", "measured (dense)", "bytes", "smaller", "ms (dense)")
    head += ("samples", "seconds", "MB beyond")
    return {"pretrained": _table(head, lines, words=4)}


_UNSEEN = {  # how much worse a network may be for nobody to notice
    "perplexity-1996": lambda value, dense: value / dense - 1 <= 0.02,
    "agreement": lambda value, dense: dense - value <= 0.05,
    "nats-per-token": lambda value, dense: value - dense <= 0.02,
    "cosine": lambda value, dense: dense - value <= 0.01,
    "phoneme-error": lambda value, dense: value - dense <= 0.003,
    "mean-difference": lambda value, dense: value - dense <= 0.005,
}
_ABOUT_HALF = 0.55


def _practice(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Per network the smallest file of which nobody notices, and the best of about half its bytes."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        judged = [row for row in rows if row["network"] == network and row["metric"] in _UNSEEN]
        unseen = [row for row in judged if _UNSEEN[row["metric"]](row["value"], row["dense_value"])]
        if not unseen:
            continue
        whole = min(unseen, key=lambda row: row["file_bytes"])
        halves = [row for row in judged if row["file_bytes"] <= _ABOUT_HALF * whole["file_bytes"]]
        half = min(halves, key=lambda row: abs(row["value"] - row["dense_value"]), default=None)
        for goal, row in (("no visible loss", whole), ("half of that", half)):
            if row is None:
                continue
            cells = (
                f"{row['method']}, {row['setting']}",
                f"{row['metric']} {row['value']:.4g} ({row['dense_value']:.4g})",
                f"{row['file_bytes']:,}",
                f"{row['dense_bytes'] / row['file_bytes']:.1f}x",
                f"{row['latency_ms']:.3g} ({row['dense_latency_ms']:.3g})",
                f"{row['seconds']:,.0f}",
            )
            lines.append((network if goal == "no visible loss" else "", goal, *cells))
    head = ("network", "goal", "recipe", "measured (dense)", "bytes", "smaller", "ms (dense)", "seconds")
    return {"practice": _table(head, lines, words=4)}


def _rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a benchmark; none if it was not run yet, and its tables stay as they are."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _presets(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Every preset on every network, networks as `_NETWORKS` has them; empty if none was measured."""
    order = ("small", "tiny", "fast")
    found = [row for row in rows if row["method"] == "Preset"]
    if not found:
        return {}
    lines = [
        "| network | preset | bytes | smaller | dense → compressed | lost | latency, batch 1 | batch 64 |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(found, key=lambda r: (_NETWORKS.index(r["network"]), order.index(r["setting"]))):
        error = " errors" if row["metric"] == "phoneme-error" else ""
        cells = (
            row["network"],
            row["setting"],
            f"{row['file_bytes']:,}",
            f"{row['dense_bytes'] / row['file_bytes']:.1f}x",
            f"{row['dense_value']:.2%} → {row['value']:.2%}{error}",
            f"{_lost(row):+.2f}",
            f"{row['latency_ms'] / row['dense_latency_ms']:.2f}",
            f"{row['latency_ms_64'] / row['dense_latency_ms_64']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return {"presets": "\n".join(lines) + "\n"}


def _families(rows: list[dict[str, Any]]) -> dict[str, str]:
    """A table per family, methods in alphabetical order, each with the settings that lose least first."""
    tables = {}
    for family in sorted({row["family"] for row in rows}):
        lines = [
            "| method | setting | network | smaller | multiply-adds | dense → compressed | lost | latency, batch 64 |",
            "|---|---|---|--:|--:|--:|--:|--:|",
        ]
        of_family = [row for row in rows if row["family"] == family]
        for row in sorted(of_family, key=_place):
            mark = "*" if row["breaking"] else ""
            error = " errors" if row["metric"] == "phoneme-error" else ""
            cells = (
                row["method"],
                row["setting"],
                row["network"],
                f"{row['dense_bytes'] / row['file_bytes']:.1f}x",
                f"{row['macs'] / row['dense_macs']:.2f}",
                f"{row['dense_value']:.2%} → {row['value']:.2%}{error}",
                f"{_lost(row):+.2f}",
                f"{row['latency_ms_64'] / row['dense_latency_ms_64']:.2f}",
            )
            lines.append("| " + " | ".join(f"{mark}{c}{mark}" for c in cells) + " |")
        tables[f"families {family}"] = "\n".join(lines) + "\n"
    return tables


def _place(row: dict[str, Any]) -> tuple[str, bool, int, float]:
    return row["method"], row["breaking"], _NETWORKS.index(row["network"]), _lost(row)


def _lost(row: dict[str, Any]) -> float:
    """Percentage points lost."""
    worse = 1 if row["metric"] == "phoneme-error" else -1
    more: float = row["value"] - row["dense_value"]
    return 100 * worse * more + 0.0


def _sparse_linear(document: dict[str, Any]) -> str:
    lines = [
        "| network | zeros | batch | 1 thread: ours / torch | | 2 threads: ours / torch | |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, float, int], dict[int, dict[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["network"], row["sparsity"], row["batch"]), {})[row["threads"]] = row
    for (network, sparsity, batch), by_threads in groups.items():
        cells = [network, f"{sparsity:.0%}", str(batch)]
        for threads in (1, 2):
            row = by_threads.get(threads)
            cells += [f"{row['ms']:.3g} / {row['torch_ms']:.3g}", f"{row['speed_up']:.1f}x"] if row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

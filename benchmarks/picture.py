"""Draw docs/speed.svg from benchmarks/results/runtime.json: ``python -m benchmarks.picture`` (extra ``bench``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
NETWORKS = {"bert-base": "BERT-base, 128 tokens", "resnet-50": "ResNet-50, 224²", "vit-b16": "ViT-B/16, 224²"}
PEERS = {
    "torch_ms": ("PyTorch", "#c44e52", "-"),
    "onnxruntime_ms": ("ONNX Runtime", "#8c6bb1", "-"),
    "openvino_ms": ("OpenVINO", "#dd8452", "-"),
    "onnxruntime_int8_ms": ("ONNX Runtime, int8", "#8c6bb1", ":"),
    "openvino_bf16_ms": ("OpenVINO, bf16", "#dd8452", ":"),
}
_DENSE = ("torch_ms", "onnxruntime_ms", "openvino_ms")


def main() -> None:
    """Reads the JSON, writes the picture."""
    document = json.loads((ROOT / "benchmarks" / "results" / "runtime.json").read_text(encoding="utf-8"))
    mpl.rcParams |= {"svg.hashsalt": "gossamer", "svg.fonttype": "none", "font.size": 9}
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots(1, len(NETWORKS))
    for ax, (name, title) in zip(axes, NETWORKS.items(), strict=True):
        _panel(ax, [row for row in document["rows"] if _plain(row) and row["network"] == name], title)
    axes[0].set_ylabel("times as fast as the best dense fp32 peer")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Batch 1, one thread, {document['cpu'].split(',')[0]}", fontsize=10)
    figure.savefig(ROOT / "docs" / "speed.svg", metadata={"Date": None})


def _plain(row: dict[str, Any]) -> bool:
    return (row["batch"], row["threads"], row["format"], row["dtype"]) == (1, 1, "unstructured", "fp32")


def _panel(ax: Axes, rows: list[dict[str, Any]], title: str) -> None:
    best = min(rows[0][key] for key in _DENSE if rows[0][key])
    zeros = [100 * row["sparsity"] for row in rows]
    ax.plot(zeros, [best / row["ms"] for row in rows], "o-", color="#2b7a4b", lw=2, label="Gossamer, fp32")
    for row, x in zip(rows, zeros, strict=True):
        ax.annotate(f"{best / row['ms']:.1f}", (x, best / row["ms"]), (-4, 5), textcoords="offset points", ha="right")
    deep = [(x, best / row["deepsparse_ms"]) for row, x in zip(rows, zeros, strict=True) if row["deepsparse_ms"]]
    ax.plot(*zip(*deep, strict=True), "s--", color="#4c72b0", label="DeepSparse 1.8.0, fp32")
    for key, (label, colour, style) in PEERS.items():
        if ms := rows[0][key]:
            ax.axhline(best / ms, color=colour, ls=style, lw=1.2, label=label)
    ax.set(title=title, xlabel="zeros, %", ylim=(0, None), xlim=(42, 100))
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

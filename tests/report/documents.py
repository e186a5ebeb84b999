"""Documents of a report made by hand: every key that the page knows, with plausible numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from gossamer.report.png import data_uri, grey_png, tinted_png

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}\x00\u202e\udc80"
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KINDS = ("gaussian noise", "shot noise", "impulse noise", "defocus blur", "contrast", "brightness", "pixelate", "jpeg")
LEVELS = (1, 2, 4, 8)


def document(files: int = 7, layers: int = 8, *, hostile: bool = False, seed: int = 0) -> dict[str, Any]:
    """A whole document.

    Args:
        files: compressed ones; the dense network comes first.
        layers: tensors of each.
        hostile: names that try to leave their place.
        seed: of the numbers.
    """
    draw = random.Random(seed)
    bad = HOSTILE if hostile else ""
    names = [
        f"model-{word}{bad}" for word in ("pruned", "four-bits", "shared", "low-rank", "shrunk", "composed", "tiny")
    ]
    made = [_file(f"dense{bad}", 1.0, 0.911, layers, draw, bad, dense=True)]
    for i in range(files):
        ratio = 1.3 * 1.6**i
        made.append(
            _file(names[i % 7] + ("" if i < 7 else f"-{i}"), ratio, 0.912 - 0.002 * i * i / 4, layers, draw, bad)
        )
    return {
        "version": 1,
        "title": f"Seven files{bad}",
        "machine": f"a processor{bad}, 2 threads",
        "measured": "2026-11-30",
        "data": {"examples": 2000, "shape": "1×28×28", "classes": [c + bad for c in CLASSES]},
        "settings": {"Attacks": f"FGSM, PGD{bad}"},
        "missing": {f"prequential{bad}": f"not asked for{bad}"},
        "files": made,
    }


def bare(files: int = 2, layers: int = 3) -> dict[str, Any]:
    """A document of ledgers alone."""
    made = document(files, layers)
    optional = (
        "accuracy",
        "latency",
        "kernels",
        "description_length",
        "generalisation",
        "robustness",
        "corruptions",
        "changed",
    )
    made["data"] = {"examples": 0, "classes": []}
    made["files"] = [{**f, **dict.fromkeys(optional)} for f in made["files"] if not f["dense"]]
    return made


def _file(
    name: str, ratio: float, accuracy: float, layers: int, draw: random.Random, bad: str, *, dense: bool = False
) -> dict[str, Any]:
    rows = [_layer(i, ratio, draw, bad, dense=dense) for i in range(layers)]
    dense_bytes = sum(r["dense_bytes"] for r in rows) + 600
    size = sum(r["bytes"] for r in rows) + 600
    speed = 1 if dense else 0.9 + ratio / 12
    return {
        "name": name,
        "path_name": f"{name}.gsm",
        "dense": dense,
        "file_bytes": size,
        "dense_bytes": dense_bytes,
        "ratio": dense_bytes / size,
        "accuracy": _accuracy(accuracy),
        "latency": {"milliseconds": 0.4 / speed, "low": 0.38 / speed, "high": 0.43 / speed, "dense_milliseconds": 0.4},
        "layers": rows,
        "kernels": None
        if dense
        else [
            {
                "layer": r["name"],
                "kernel": "sliced",
                "milliseconds": 0.02 * (1 + i),
                "dense_milliseconds": 0.03 * (1 + i),
                "why": bad,
            }
            for i, r in enumerate(rows)
            if len(r["shape"]) > 1
        ],
        "description_length": None if dense else _length(size, accuracy),
        "generalisation": _generalisation(accuracy, draw),
        "robustness": _robustness(accuracy, dense, bad),
        "corruptions": _corruptions(accuracy, draw),
        "changed": None if dense else _changed(draw),
        "seen": {} if dense else _seen(draw),
    }


def _accuracy(value: float) -> dict[str, Any]:
    return {"value": value, "correct": round(2000 * value), "count": 2000, "standard_error": 0.0065}


def _layer(i: int, ratio: float, draw: random.Random, bad: str, *, dense: bool) -> dict[str, Any]:
    shape = [500 // (1 + i), 800 // (1 + i)] if i % 2 == 0 else [500 // (1 + i)]
    whole = 4 * math.prod(shape)
    density = 1.0 if dense or len(shape) == 1 else min(1.0, draw.uniform(0.5, 1.5) / ratio)
    size = whole if dense else max(8, round(whole / ratio * draw.uniform(0.6, 1.4)))
    mask = None
    if density < 1:
        shares = np.random.default_rng(i).random((32, 48)) * np.linspace(0.2, 1, 48)
        mask = {"height": 32, "width": 48, "darkest": 0.4, "uri": data_uri(tinted_png(shares, (47, 121, 196)))}
    kind = "weight" if len(shape) > 1 else "bias"
    return {
        "name": f"features.{i // 2}{bad}.{kind}",
        "shape": shape,
        "bytes": size,
        "dense_bytes": whole,
        "density": density,
        "bits": 8 * size / math.prod(shape),
        "rank": 20 if i == 2 and not dense else None,
        "full_rank": min(shape) if len(shape) > 1 else None,
        "encoding": f"Masked(Mask, Codebook(Dense)){bad}",
        "mask": mask,
    }


def _length(size: int, accuracy: float) -> dict[str, Any]:
    sets = {
        name: {
            "labels": n,
            "label_bits": n * (1.9 - 1.7 * accuracy),
            "label_bits_calibrated": n * (1.88 - 1.7 * accuracy),
            "uniform_bits": n * math.log2(10),
            "dense_label_bits": n * 0.36,
            "dense_label_bits_calibrated": n * 0.34,
        }
        for name, n in (("train", 60_000), ("test", 10_000))
    }
    return {
        "model_bits": 8 * size,
        "file_bytes": size,
        "free": ["architecture", "hyper-parameters"],
        "temperature": 1.2,
        "sets": sets,
        "two_part_bits": {k: 8 * size + v["label_bits"] for k, v in sets.items()},
        "dense_two_part_bits": {k: 8 * 1_700_000 + v["dense_label_bits"] for k, v in sets.items()},
        "pays_from": {"train": round(8 * size / 2.9), "test": None},
    }


def _generalisation(accuracy: float, draw: random.Random) -> dict[str, Any]:
    train = accuracy + 0.04
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "n": 20 * i * i,
            "confidence": i / 10 + 0.05,
            "accuracy": max(0.0, i / 10),
        }
        for i in range(10)
    ]
    classes = []
    for i in range(10):
        a = min(0.99, accuracy + draw.uniform(-0.15, 0.08))
        row = {
            "class": i,
            "n": 200,
            "accuracy": a,
            "low": a - 0.05,
            "high": a + 0.03,
            "dense_accuracy": min(0.99, a + 0.02),
        }
        classes.append({**row, "p": 0.01, "p_adjusted": 0.1 * i, "changed": i == 0})
    return {
        "train_accuracy": train,
        "test_accuracy": accuracy,
        "gap": train - accuracy,
        "calibration_error": 0.04,
        "calibration_error_dense": 0.03,
        "reliability": bins,
        "per_class": classes,
    }


def _robustness(accuracy: float, dense: bool, bad: str) -> dict[str, Any]:
    curve = [(e / 255, accuracy * math.exp(-e / 5)) for e in LEVELS]
    return {
        "norm": "linf",
        "examples": 200,
        "clean": accuracy,
        "epsilons": [e for e, _ in curve],
        "rows": [
            {"attack": a + bad, "epsilon": e, "accuracy": y + d}
            for a, d in (("FGSM", 0.05), ("PGD", 0.01))
            for e, y in curve
        ],
        "worst": [{"epsilon": e, "accuracy": y, "low": max(0.0, y - 0.05), "high": y + 0.05} for e, y in curve],
        "transfer": None if dense else [{"epsilon": e, "accuracy": (y + accuracy) / 2} for e, y in curve],
        "surrogate": None,
        "warnings": [] if dense else [f"white-box is weaker than transfer at 8/255{bad}"],
    }


def _corruptions(accuracy: float, draw: random.Random) -> dict[str, Any]:
    rows = [
        {"corruption": kind, "severity": s, "accuracy": max(0.0, accuracy - s * draw.uniform(0.01, 0.06))}
        for kind in KINDS
        for s in range(1, 6)
    ]
    mean = {str(s): sum(r["accuracy"] for r in rows if r["severity"] == s) / len(KINDS) for s in range(1, 6)}
    return {"rows": rows, "mean": mean}


def _changed(draw: random.Random) -> dict[str, Any]:
    rows = [
        {
            "index": 7 * i,
            "true": i % 10,
            "dense": i % 10,
            "compressed": (i + 3) % 10,
            "dense_p": 0.9 - i / 50,
            "compressed_p": 0.1,
        }
        for i in range(24)
    ]
    return {"rows": rows, "agreement": draw.uniform(0.9, 0.99)}


def _seen(draw: random.Random) -> dict[str, Any]:
    found = {}
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (28, 28)).astype(np.uint8)
        image = {"height": 28, "width": 28, "uri": data_uri(grey_png(pixels))}
        found[str(7 * i)] = {"image": image, "dense": image, "compressed": image}
    return found

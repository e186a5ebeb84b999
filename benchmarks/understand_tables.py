"""Tables of what compression did, from the JSON of `benchmarks.understand`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["understand_tables"]

Make = Callable[..., str]


def understand_tables(document: dict[str, Any], table: Make) -> dict[str, str]:
    """Marker in a page → table."""
    return {
        "understand_lengths": _lengths(document["description_length"], table),
        "understand_generalisation": _generalisation(document["description_length"], table),
        "understand_search": _search(document["search"], table),
        "understand_prequential": _prequential(document["prequential"], document["description_length"], table),
        "understand_robustness": _robustness(document["robustness"], table),
        "understand_corruptions": _corruptions(document["corruptions"], table),
        "understand_race": _race(document["race"], table),
        "understand_vog": _vog(document["vog"], table),
        "understand_pie": _pie(document["pie"], table),
    }


def _groups(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in keys), []).append(row)
    return found


def _with_error(values: Sequence[float], digits: int, factor: float = 1) -> str:
    scaled = [factor * v for v in values]
    error = f" ± {stdev(scaled) / len(scaled) ** 0.5:.{digits}f}" if len(scaled) > 1 else ""
    return f"{mean(scaled):.{digits}f}{error}"


def _bytes(bits: Sequence[float]) -> str:
    return f"{mean(bits) / 8:,.0f}"


def _lengths(rows: list[dict[str, Any]], table: Make) -> str:
    head = ("network", "what", "file, bytes", "training labels, bytes", "both", "calibrated", "pays from N", "seeds")
    made = []
    for (network, variant), group in _groups(rows, "network", "variant").items():
        lengths = [r["description_length"] for r in group]
        pays = [d["pays_from"]["train"] for d in lengths]
        made.append(
            (
                network,
                variant,
                _bytes([d["model_bits"] for d in lengths]),
                _bytes([d["sets"]["train"]["label_bits"] for d in lengths]),
                _bytes([d["two_part_bits"]["train"] for d in lengths]),
                _bytes([d["two_part_bits_calibrated"]["train"] for d in lengths]),
                "never" if None in pays else f"{mean(pays):,.0f}",
                str(len(group)),
            )
        )
    return table(head, made, words=2)


def _generalisation(rows: list[dict[str, Any]], table: Make) -> str:
    head = ("network", "what", "training, %", "test, %", "gap", "calibration error", "classes that changed")
    made = []
    for (network, variant), group in _groups(rows, "network", "variant").items():
        general = [r["generalisation"] for r in group]
        changed = [sum(c["changed"] for c in g["per_class"]) for g in general]
        made.append(
            (
                network,
                variant,
                _with_error([g["train_accuracy"] for g in general], 2, 100),
                _with_error([g["test_accuracy"] for g in general], 2, 100),
                _with_error([g["gap"] for g in general], 2, 100),
                _with_error([g["calibration_error"] for g in general], 2, 100),
                "–" if variant == "dense" else f"{mean(changed):.1f}",
            )
        )
    return table(head, made, words=2)


def _search(rows: list[dict[str, Any]], table: Make) -> str:
    """How often each is chosen, beside its bits and accuracy."""
    names = list(dict.fromkeys(c["name"] for r in rows for c in r["rows"]))
    made = []
    for name in names:
        found = [next(c for c in r["rows"] if c["name"] == name) for r in rows]
        made.append(
            (
                name,
                _bytes([c["description_length"]["two_part_bits"]["train"] for c in found]),
                _with_error([c["validation_accuracy"] for c in found], 2, 100),
                f"{sum(r['best'] == name for r in rows)} of {len(rows)}",
            )
        )
    return table(("recipe", "file + labels, bytes", "accuracy on other images, %", "chosen"), made, words=1)


def _prequential(rows: list[dict[str, Any]], lengths: list[dict[str, Any]], table: Make) -> str:
    uniform = rows[0]["uniform_bits"]
    made = [("uniform", _bytes([uniform]))]
    made.append(("prequential, LeNet-5 trained on all before", _bytes([r["bits"] for r in rows])))
    for (network, variant), group in _groups(lengths, "network", "variant").items():
        if network == "LeNet-5" and variant in ("dense", "composed", "98% sparse"):
            bits = [r["description_length"]["two_part_bits"]["train"] for r in group]
            made.append((f"file and labels, {network}, {variant}", _bytes(bits)))
    return table(("code of 60,000 labels", "bytes"), made, words=1)


def _level(epsilon: float) -> str:
    return f"{round(255 * epsilon)}/255"


def _robustness(rows: list[dict[str, Any]], table: Make) -> str:
    levels = rows[0]["robustness"]["epsilons"]
    head = ("network", "what", "clean, %", *(_level(e) for e in levels), f"from dense, {_level(levels[1])}", "warnings")
    made = []
    for (network, variant), group in _groups(rows, "network", "variant").items():
        found = [r["robustness"] for r in group]
        worst = [[next(w["accuracy"] for w in f["worst"] if w["epsilon"] == e) for f in found] for e in levels]
        carried = [t["accuracy"] for f in found if f["transfer"] for t in f["transfer"] if t["epsilon"] == levels[1]]
        made.append(
            (
                network,
                variant,
                _with_error([f["clean"] for f in found], 1, 100),
                *(_with_error(w, 1, 100) for w in worst),
                _with_error(carried, 1, 100) if carried else "–",
                str(sum(bool(f["warnings"]) for f in found)),
            )
        )
    return table(head, made, words=2)


def _corruptions(rows: list[dict[str, Any]], table: Make) -> str:
    severities = [str(s) for s in range(1, 6)]
    made = []
    for (network, variant), group in _groups(rows, "network", "variant").items():
        clean = [r["corruptions"]["clean"] for r in group]
        cells = [_with_error([r["corruptions"]["mean"][s] for r in group], 1, 100) for s in severities]
        made.append((network, variant, _with_error(clean, 1, 100), *cells))
    return table(("network", "what", "clean, %", *(f"severity {s}" for s in severities)), made, words=2)


def _race(rows: list[dict[str, Any]], table: Make) -> str:
    if not rows:  # the peer was not there
        return ""
    made = []
    for race in rows:
        for attack in dict.fromkeys(r["attack"] for r in race["rows"]):
            found = [r for r in race["rows"] if r["attack"] == attack]
            cells = [
                f"{100 * r['ours']:.1f}" + (f" / {100 * r['theirs']:.1f}" if r["theirs"] is not None else "")
                for r in found
            ]
            made.append((race["network"], attack, *cells))
    head = ("network", "attack", *(_level(r["epsilon"]) for r in found))
    return table(head, made, words=2)


def _vog(rows: list[dict[str, Any]], table: Make) -> str:
    made = []
    for (network,), group in _groups(rows, "network").items():
        for logit in ("predicted", "true"):
            found = [r[logit] for r in group]
            errors = [[f["deciles"][i]["error"] for f in found] for i in range(10)]
            ratio = _with_error([f["top_over_bottom"] for f in found], 2)
            made.append((network, logit, *(f"{100 * mean(e):.1f}" for e in errors), ratio))
    head = ("network", "logit", *(str(i) for i in range(1, 11)), "top / bottom")
    return table(head, made, words=2)


def _pie(rows: list[dict[str, Any]], table: Make) -> str:
    made = []
    for row in rows:
        accuracy = row["accuracy"]
        cells = [f"{100 * accuracy[k][w]:.1f}" for k in ("all", "pie", "non_pie") for w in ("dense", "compressed")]
        made.append(
            (
                row["variant"],
                str(row["pies"]),
                f"{100 * row['disagreement']:.2f}",
                f"{100 * row['control_disagreement']:.2f}",
                *cells,
            )
        )
    head = ("compressed", "exemplars", "disagree, %", "dense and dense, %", "all: dense", "compressed")
    return table((*head, "exemplars: dense", "compressed", "others: dense", "compressed"), made, words=1)

"""torchattacks on a TorchScript network: ``PYTHON understand_attacks_worker.py FOLDER``, with the peer's Python.

FOLDER holds ``network.ts``, ``examples.pt`` (inputs, targets) and ``race.json`` (what is asked for). Prints one line of
JSON per attack and radius when it is done. Imports nothing of Gossamer. Of torchattacks only the attacks that are raced
are imported: others need packages that are not there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch


def attack_class(module: str, name: str) -> Any:
    """One attack of torchattacks, without its package's own import of all of them."""
    if "torchattacks" not in sys.modules:
        spec = importlib.util.find_spec("torchattacks")
        assert spec is not None
        for package, folder in (("torchattacks", ""), ("torchattacks.attacks", "attacks")):
            made = types.ModuleType(package)
            made.__path__ = [str(Path(p) / folder) for p in spec.submodule_search_locations or ()]
            sys.modules[package] = made
    return getattr(importlib.import_module(f"torchattacks.attacks.{module}"), name)


def made(kind: str, model: Any, epsilon: float, race: dict[str, Any]) -> Any:
    """An attack with the race's settings."""
    steps, queries, classes = race["steps"], race["queries"], race["classes"]
    if kind == "FGSM":
        return attack_class("fgsm", "FGSM")(model, eps=epsilon)
    if kind == "PGD":
        alpha = 2.5 * epsilon / steps  # Madry et al.'s rule, for any number of steps
        return attack_class("pgd", "PGD")(model, eps=epsilon, alpha=alpha, steps=steps, random_start=True)
    if kind in ("APGD-CE", "APGD-DLR"):
        loss = kind[5:].lower()
        return attack_class("apgd", "APGD")(model, eps=epsilon, steps=steps, loss=loss, norm="Linf")
    if kind == "APGD-T":
        return attack_class("apgdt", "APGDT")(model, eps=epsilon, steps=steps, n_classes=classes, norm="Linf")
    if kind == "Square":
        return attack_class("square", "Square")(model, eps=epsilon, n_queries=queries, norm="Linf")
    if kind == "FAB":
        return attack_class("fab", "FAB")(
            model, eps=epsilon, steps=steps, n_classes=classes, multi_targeted=True, norm="Linf"
        )
    raise SystemExit(f"unknown attack {kind}")


def main() -> None:
    """Run what is asked for."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    race = json.loads((folder / "race.json").read_text())
    examples = torch.load(folder / "examples.pt", weights_only=True)
    inputs, targets = examples["inputs"], examples["targets"]
    model = torch.jit.load(str(folder / "network.ts")).eval()
    for epsilon in race["epsilons"]:
        left = torch.ones(len(inputs), dtype=torch.bool)
        for kind in race["attacks"]:
            torch.manual_seed(0)
            start, stays = time.process_time(), left.clone()
            # FAB is no attack of the race but part of the worst case: it runs where nothing else got through.
            rows = left.nonzero()[:, 0] if kind == "FAB" else torch.arange(len(inputs))
            for numbers in rows.split(race["batch"]):
                part, labels = inputs[numbers], targets[numbers]
                points = made(kind, model, epsilon, race)(part, labels)
                # Nobody wins by leaving the ball.
                low, high = (part - epsilon).clamp(0, 1), (part + epsilon).clamp(0, 1)
                points = torch.minimum(torch.maximum(points, low), high)
                with torch.no_grad():
                    stays[numbers] = model(points).argmax(1) == labels
            left &= stays
            row = {"attack": kind, "epsilon": epsilon, "accuracy": float(stays.float().mean())}
            print(json.dumps({**row, "seconds": time.process_time() - start}), flush=True)
        print(json.dumps({"attack": "worst", "epsilon": epsilon, "accuracy": float(left.float().mean())}), flush=True)
    print(json.dumps({"version": importlib.metadata.version("torchattacks")}), flush=True)


if __name__ == "__main__":
    main()

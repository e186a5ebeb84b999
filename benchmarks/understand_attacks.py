"""The race of our attacks with torchattacks: same network, same images, same radii, same numbers of steps.

See `raced`; `benchmarks.understand_race` runs it. The peer lives in
an environment of its own, which ``benchmarks/peers.sh`` makes.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.measure import APGD, FGSM, PGD, Attack, Square, robustness

__all__ = ["EPSILONS", "peer_python", "raced", "saved"]

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
WITHIN = 0.005
_ROUNDING = 1e-6  # shares of 1,000 examples, of which the peer's are float32
_ROOT = Path(__file__).parent.parent


def peer_python(folder: Path | None = None) -> Path | None:
    """The Python with torchattacks, or None where there is none."""
    found = (folder or _ROOT / ".peers") / "attacks" / "bin" / "python"
    return found if found.exists() else None


def saved(model: nn.Module, example: Tensor, file: Path) -> Path:
    """A network as a TorchScript file, which runs without its classes.

    Args:
        model: takes images.
        example: images to trace it with.
        file: where.
    """
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, example), str(file))  # type: ignore[no-untyped-call]
    return file


def _ours(steps: int, queries: int) -> tuple[Attack, ...]:
    """As the peer's: nothing starts where another ended."""
    single = (APGD("ce", steps=steps), APGD("dlr", steps=steps), APGD("targeted", steps=steps, targets=9))
    return (FGSM(), PGD(steps=steps), *single, Square(queries=queries))


def raced(
    network_file: Path,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 20,
    queries: int = 200,
    batch: int = 250,
    peer: Path | None = None,
) -> dict[str, Any]:
    """Both on one network.

    Args:
        network_file: from `saved`.
        inputs: pixels [n, …] in [0, 1].
        targets: int64 [n].
        epsilons: radii.
        steps: gradients of PGD, APGD-CE and APGD-DLR, and of APGD-T per class.
        queries: of Square.
        batch: images at a time, for both.
        peer: Python with torchattacks; None: that of ``.peers``.

    Returns:
        ``{"peer": version or None, "steps", "queries", "clean", "within": bool, "rows": [{"attack", "epsilon", "ours",
        "theirs", "our_seconds", "their_seconds"}]}``; attack "worst" is the worst case of all attacks of each, the
        peer's with its FAB on what is left. ``within``: ours is nowhere over theirs by more than half a point. Seconds
        of processor.
    """
    python = peer or peer_python()
    if python is not None and not python.exists():
        python = None
    with warnings.catch_warnings():  # what comes after TorchScript refuses eval(), which the peer calls
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(network_file)).eval()  # type: ignore[no-untyped-call]
    mine = _ours(steps, queries)
    seconds: dict[str, float] = {}
    last: list[tuple[str, float]] = []

    def told(what: str, done: int, total: int) -> None:
        now = time.process_time()
        if last:
            seconds[last[-1][0]] = now - last[-1][1]
        last.append((what, now))
        del done, total

    found = robustness(
        model,
        inputs,
        targets,
        epsilons=epsilons,
        attacks=mine,
        batch=batch,
        progress=told,  # type: ignore[arg-type]
    )
    told("", 0, 0)
    theirs: dict[tuple[str, float], dict[str, Any]] = {}
    version = None
    if python is not None:
        race = {
            "attacks": [*(a.name for a in mine), "FAB"],
            "epsilons": list(epsilons),
            "steps": steps,
            "queries": queries,
            "batch": batch,
            "classes": int(model(inputs[:1]).shape[1]),
        }
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "network.ts").write_bytes(network_file.read_bytes())
            torch.save({"inputs": inputs, "targets": targets}, place / "examples.pt")
            (place / "race.json").write_text(json.dumps(race))
            worker = _ROOT / "benchmarks" / "understand_attacks_worker.py"
            done = subprocess.run([str(python), str(worker), folder], stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            version = row.get("version", version)
            if "attack" in row:
                theirs[row["attack"], row["epsilon"]] = row
    rows = []
    for epsilon in epsilons:
        worst = next(w.accuracy for w in found.worst if w.epsilon == epsilon)
        for name, ours in (*((a.name, found.accuracy(a.name, epsilon)) for a in mine), ("worst", worst)):
            other = theirs.get((name, epsilon), {})
            rows.append(
                {
                    "attack": name,
                    "epsilon": epsilon,
                    "ours": ours,
                    "theirs": other.get("accuracy"),
                    "our_seconds": seconds.get(f"{name}, ε {epsilon:.4g}"),
                    "their_seconds": other.get("seconds"),
                }
            )
    within = all(r["theirs"] is None or r["ours"] <= r["theirs"] + WITHIN + _ROUNDING for r in rows)
    return {"peer": version, "steps": steps, "queries": queries, "clean": found.clean, "within": within, "rows": rows}

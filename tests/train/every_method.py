"""One example of each method, for tests of what all have in common."""

from __future__ import annotations

from gossamer.train import (
    DSR,
    ITOP,
    SET,
    SNFS,
    DeepR,
    Developmental,
    GradualMagnitude,
    NofM,
    Parts,
    PruneAndGrow,
    RigL,
    SparseTraining,
    SRigL,
    Static,
    TopKAST,
    drop,
    grow,
    schedule,
    scope,
)


def every_method(steps: int, every: int, seed: int = 0, sparsity: float = 0.8) -> dict[str, SparseTraining]:
    """By a name for the test."""
    common = {"sparsity": sparsity, "seed": seed}
    moved = {**common, "steps": steps, "every": every}

    def composed(**parts: object) -> PruneAndGrow:
        exchange = schedule.Linear(every=every, end=steps, fraction=0.3)
        return PruneAndGrow(**common, made_of=Parts(schedule=exchange, **parts))  # type: ignore[arg-type]

    return {
        "static": Static(**common),  # type: ignore[arg-type]
        "set": SET(**moved),  # type: ignore[arg-type]
        "rigl": RigL(**moved),  # type: ignore[arg-type]
        "snfs": SNFS(**moved),  # type: ignore[arg-type]
        "snfs window": SNFS(**moved, window=2),  # type: ignore[arg-type]
        "snfs one step": SNFS(**moved, window=1),  # type: ignore[arg-type]
        "dsr": DSR(**moved, threshold=0.05),  # type: ignore[arg-type]
        "deepr": DeepR(**moved, temperature=1e-6, l1=1e-3),  # type: ignore[arg-type]
        "topkast": TopKAST(**moved, backward_sparsity=sparsity - 0.2, decay=1e-4),  # type: ignore[arg-type]
        "itop": ITOP(**moved, growth=grow.Gradient()),  # type: ignore[arg-type]
        "developmental": Developmental(**moved),  # type: ignore[arg-type]
        "gradual": GradualMagnitude(**moved),  # type: ignore[arg-type]
        "gradual global": GradualMagnitude(**moved, across_layers=True),  # type: ignore[arg-type]
        "srigl": SRigL(**moved),  # type: ignore[arg-type]
        "n of m": NofM(n=1, m=4, steps=steps, every=every, seed=seed),
        "global rigl": composed(grow=grow.Gradient(), scope=scope.Global()),
        "global set": composed(grow=grow.Random(), scope=scope.Global()),
        "taylor": composed(grow=grow.Random(), drop=drop.Taylor()),
        "movement": composed(grow=grow.Random(), drop=drop.Movement()),
        "sensitivity": composed(grow=grow.Gradient(), drop=drop.Sensitivity()),
        "random": composed(grow=grow.Random(), drop=drop.Random()),
    }


NAMES = tuple(every_method(100, 5))

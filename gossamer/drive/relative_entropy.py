"""Training for few bits: weights become draws of a shared generator, and a file says only which ones were taken."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from gossamer.drive.block_journal import sum_of_trees
from gossamer.drive.posteriors import Places, Posteriors, Timetable, divided, number_paths, places_in
from gossamer.drive.recipe import Stage, State, check_patterns
from gossamer.drive.tune import Tune, batches_of, train
from gossamer.encoding.drawn import MAX_INDEX_BITS, Drawn
from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of, uniform_bits
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import DENSE, WEIGHTS, matches, patterns_in
from gossamer.network.rebuild import small_tree
from gossamer.store.state_file import read_state, write_state

__all__ = ["RelativeEntropy"]

_DRAWN = Skeleton(Drawn, (("scale", DENSE),))
_KEEP_EVERY = 30.0  # seconds
_TITLE = "relative-entropy coding"


@final
@dataclass(frozen=True, kw_only=True)
class RelativeEntropy(Stage):
    """Minimal random code learning (MIRACLE): weights cost the bits that they say, however many there are.

    Every weight gets a Gaussian N(μ, σ²) in place of a number and trains by samples of it (w = μ + σ·ε); per tensor
    there is a prior N(0, s²), with s² the mean of μ² + σ². KL(posterior ‖ prior) is what a weight says in nats. A price
    on it rises until all of them together say as much as the budget holds. Then each tensor is cut into blocks at
    random, as many as it has of the budget, and prices of their own bring each block to ``bits``. Then, block by
    block in random order while the others train on: of 2^bits draws of a generator from the prior, one is taken with
    probability in proportion to posterior/prior and stays. Its number is what the file holds (`Drawn`).

    Numbers that other methods left are coded the same way: survivors of a mask, factors, the table of a hash
    (`share.Hashing` before this is the paper's own choice for large layers), centroids. Norms stay as they are unless
    ``only`` names them in full; they train along.

    Args:
        average_bits: per number, or
        budget_bytes: of all indices together. Every tensor takes one index at least; its scale, 2 bytes, comes on top.
        bits: of an index, 1 to 24. More cost 2^bits draws of every weight, but lose less by the choice among draws.
        tune: the training run; its last weights count, so no ``held_out``.
        ramp: share of its steps before the first block is coded, above 0 and below 1.
        seed: of noise, blocks, draws and choices.
        only: glob patterns of tensor names; empty: weights and biases.
        skip: glob patterns of tensor names to leave alone.

    Cost: beside training, some 8 ns per number and draw (100,000 numbers at 12 bits: 4 s, at 16 bits: 1 min); per
    step a random number, and every fourth step a KL, of every weight.

    Exact: the file's weights are those that training ended with, bit for bit on every machine. The same seed, data and
    versions give the same file; a run that is killed and resumed too (`gs.compress(…, checkpoint=…)`), provided
    that the data come in the same order again.

    Example:
        >>> from gossamer.drive.recipe import run
        >>> from torch import nn
        >>> data = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(8)]
        >>> state = run(nn.Linear(8, 2), [RelativeEntropy(average_bits=2, bits=6)], data=data)
        >>> sum(leaf.tensor.numel() for leaf in state.trees["weight"].leaves() if leaf.field == "index") <= 5
        True

    Source: Havasi, Peharz, Hernández-Lobato 2019, arXiv 1810.00440, algorithms 1 and 2. Here the number of blocks
    differs between tensors, the scale follows in closed form, and prices are controlled by amounts, not by signs.
    """

    average_bits: float | None = None
    budget_bytes: int | None = None
    bits: int = 14
    tune: Tune = field(default_factory=lambda: Tune(epochs=10))
    ramp: float = 0.5
    seed: int = 0
    only: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [b for b in (self.average_bits, self.budget_bytes) if b is not None]
        if len(given) != 1 or not given[0] > 0:
            found = f"average_bits {self.average_bits}, budget_bytes {self.budget_bytes}"
            raise PlanError(f"RelativeEntropy: found {found}, expected one of them, above 0")
        if not (1 <= self.bits <= MAX_INDEX_BITS and 0 < self.ramp < 1 and 0 <= self.seed < 1 << 64):
            found = f"bits {self.bits}, ramp {self.ramp}, seed {self.seed}"
            raise PlanError(
                f"RelativeEntropy: found {found}, expected 1 to {MAX_INDEX_BITS}, between 0 and 1, and 0 to 2⁶⁴ − 1"
            )
        if self.tune.held_out is not None:
            raise PlanError("RelativeEntropy: found held_out in tune, expected it in a Tune entry afterwards")

    @property
    def needs_data(self) -> bool:
        """It trains."""
        return True

    def check(self, where: str, listed: Sequence[TensorSpec], possible: dict[str, set[Skeleton]]) -> None:
        """Patterns match, and something is left that can be coded."""
        said = f"{where}: RelativeEntropy"
        check_patterns(said, self.only, self.skip, listed)
        taken, why = False, ""
        for spec in filter(self._means, listed):
            after: set[Skeleton] = set()
            for skeleton in possible[spec.name]:
                made, found = skeleton, list(number_paths(skeleton))
                for path in found:
                    made = made.put(path, _DRAWN)
                taken |= bool(found)
                why = why or ("" if found else f"{spec.name}: found {skeleton}, expected Dense numbers in it")
                after.add(made)
            possible[spec.name] = after
        if not taken:
            names = ", ".join(s.name for s in listed[:4])
            raise CompositionError(f"{said} matches no layer: {why or f'expected names like {names}'}")

    def _means(self, spec: TensorSpec) -> bool:
        """Whether a tensor is meant, by kind and name."""
        if matches(spec.names, self.skip) or not spec.dtype.is_floating_point or spec.kind is Kind.BUFFER:
            return False
        if spec.kind in WEIGHTS | {Kind.BIAS}:
            return not self.only or matches(spec.names, self.only)
        return any(p in spec.names for p in patterns_in(self.only))

    def run(self, state: State) -> None:
        """Train, code, read back."""
        specs = [s for s in state.specs if self._means(s)]
        places = places_in(specs, state.trees)
        if not places:
            names = ", ".join(s.name for s in specs[:4])
            raise CompositionError(f"found no numbers that train in {names or 'any tensor'}, expected Dense ones")
        self._check_skip(places)
        sizes = {name: _numbers(small_tree(state.trees[at[0][0]]), at[0][1]).numel() for name, at in places.items()}
        blocks = self._blocks(sizes)
        if not state.training:
            self._stand_in(state, places, sizes, blocks)
            return
        data = batches_of(state.data, _TITLE)
        table = Timetable(self.tune.epochs * len(data), self.ramp)
        chosen = {"blocks": blocks, "bits": self.bits, "seed": self.seed}
        work = Posteriors(state.model, state.specs, state.trees, places, table=table, **chosen)
        kept = _Kept.of(self, state)
        done = kept.steps if kept is not None else 0

        def before_step(step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
            del steps
            if kept is not None:
                kept.before_step(step, work, optimizer)
            work.before_step(step)

        if done < table.steps:
            train(
                work.network,
                data,
                self.tune,
                teacher=state.model if self.tune.taught else None,
                loss=state.loss,
                progress=state.progress,
                title=_TITLE,
                before_step=before_step,
                after_backward=work.after_backward,
                done=done,
            )
        if kept is not None:
            kept.ended(table.steps, work)
        work.settle()
        state.take(work.network)
        counts = {name: posterior.blocks for name, posterior in work.each.items()}
        state.plans.append({"method": "RelativeEntropy", "bits": self.bits, "seed": self.seed, "blocks": counts})

    def _check_skip(self, places: Places) -> None:
        for tensor, _ in (place for at in places.values() for place in at):
            if matches([tensor], self.tune.skip):
                raise PlanError(
                    f"RelativeEntropy: found {tensor!r} in tune.skip, expected it in skip too: what is coded must train"
                )

    def _blocks(self, sizes: Mapping[str, int]) -> int:
        """How many blocks the budget holds."""
        numbers = sum(sizes.values())
        bits = self.budget_bytes * 8 if self.budget_bytes is not None else (self.average_bits or 0) * numbers
        blocks = int(bits // self.bits)
        if not len(sizes) <= blocks <= numbers:
            raise PlanError(
                f"RelativeEntropy: found a budget of {int(bits)} bits, expected {len(sizes) * self.bits} (one index of "
                f"{self.bits} bits per tensor) to {numbers * self.bits} (one per number)"
            )
        return blocks

    def _stand_in(self, state: State, places: Places, sizes: Mapping[str, int], blocks: int) -> None:
        """Any draws, as many as there will be: for a dry run."""
        counts = divided(blocks, list(sizes.values()), list(sizes.values()))
        made: dict[int, Drawn] = {}
        for (name, at), count in zip(places.items(), counts, strict=True):
            array = _numbers(small_tree(state.trees[at[0][0]]), at[0][1])
            words = uniform_bits(key_of(self.seed, name, "choice"), count) >> (64 - self.bits)
            scale = Dense(array.detach().float().square().mean().sqrt().half().view(1))
            index = torch.from_numpy(words.astype("int32"))
            made[id(array)] = Drawn(index, scale, tuple(array.shape), self.seed, name, self.bits)
        for tensor in {tensor for at in places.values() for tensor, _ in at}:
            state.trees[tensor] = _replaced(state.trees[tensor], made)


@final
class _Kept:
    """One file from which a killed run goes on; written every half a minute, read before the first step.

    Args:
        path: of the file.
        run: what the run is, as text.
        state: of an earlier run, or None.
    """

    def __init__(self, path: Path, run: str, state: Mapping[str, Any] | None) -> None:
        self._path, self._run, self._found = path, run, state
        self._last = time.monotonic()
        self.steps = int(state["step"]) if state is not None else 0

    @classmethod
    def of(cls, entry: RelativeEntropy, state: State) -> _Kept | None:
        """Of an entry of a recipe; None: nothing is kept.

        Raises:
            PlanError: something is there and is not to be continued, or belongs to another run.
            DataError: the folder cannot be made.
        """
        if state.checkpoint is None:
            return None
        folder, run = state.checkpoint.folder, f"{entry!r} {sum_of_trees(state.specs, state.trees)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
        path = folder / f"relative-entropy-{state.entry}.safetensors"
        if not path.exists():
            return cls(path, run, None)
        if not state.checkpoint.resume:
            raise PlanError(f"{path}: found a run, expected none: go on with it by resume, or delete the folder")
        found = read_state(path)
        if found.get("run") != run:
            raise PlanError(f"{path}: found a run with another recipe or network, expected {run[:120]}")
        return cls(path, run, found)

    def before_step(self, step: int, work: Posteriors, optimizer: torch.optim.Optimizer) -> None:
        """Put in what was found; keep what there is now and then."""
        if self._found is not None:
            work.take(self._found["work"])
            optimizer.load_state_dict(self._found["optimizer"])
            torch.set_rng_state(self._found["random"])
            self._found = None
        elif time.monotonic() - self._last >= _KEEP_EVERY:
            self._write(step, work, optimizer.state_dict())

    def ended(self, steps: int, work: Posteriors) -> None:
        """All steps are done, now or in an earlier run."""
        if self._found is not None:
            work.take(self._found["work"])
            work.network.eval()
        else:
            self._write(steps, work, {})

    def _write(self, step: int, work: Posteriors, optimizer: Mapping[str, Any]) -> None:
        random = torch.get_rng_state()
        state = {"run": self._run, "step": step, "work": work.state(), "optimizer": optimizer, "random": random}
        write_state(self._path, state)
        self._last = time.monotonic()


def _numbers(tree: Encoding, path: str) -> torch.Tensor:
    node = tree.at(path)
    assert isinstance(node, Dense)
    return node.array


def _replaced(tree: Encoding, made: Mapping[int, Drawn]) -> Encoding:
    """The tree with `Dense` nodes replaced, by the identity of their numbers."""
    for path, node in list(tree.nodes()):
        if isinstance(node, Dense) and id(node.array) in made:
            tree = tree.put(path, made[id(node.array)])
    return tree

"""The one object that a training loop needs beside its own: it moves the live weights after the optimiser's steps."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from gossamer.encoding.random import key_of
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import matches
from gossamer.store.state_file import read_state, write_state
from gossamer.train.checkpoint import Checkpoint, check_fits
from gossamer.train.choose import highest, places, rejoined
from gossamer.train.convert import sparse_layers
from gossamer.train.drop import Taylor
from gossamer.train.grow import GrowScore
from gossamer.train.health import check_health, finite
from gossamer.train.kinds import keys_of
from gossamer.train.method import SparseTraining
from gossamer.train.ranks import Ranks
from gossamer.train.relocate import Moved, check_optimizer, group_of, relocate
from gossamer.train.report import LivedAt, Writer, tell
from gossamer.train.scope import Room, Wanted
from gossamer.train.structure import Free
from gossamer.train.tracked import Tracked

__all__ = ["Sparsifier", "Update"]


@final
@dataclass(frozen=True)
class Update:
    """A change of the topology.

    Args:
        step: after which it came.
        layers: by name what became of each.
    """

    step: int
    layers: Mapping[str, Moved]

    @property
    def live(self) -> int:
        """Live weights of all layers."""
        return sum(moved.live for moved in self.layers.values())


@final
class Sparsifier:
    """Prunes and grows while any loop trains: call `step` after ``optimizer.step()``, before gradients are cleared.

    The optimiser's state follows the live weights; learning rates, clipping and scaling stay as they are. One network
    may have several of these over different layers (``only``, ``skip``).

    Args:
        model: from `sparsify`, perhaps wrapped in DistributedDataParallel: then gradients that decide about growth are
            averaged, and ranks compare topologies at every update.
        optimizer: made after `sparsify`.
        method: the same that `sparsify` was given.
        writer: takes ``add_scalar(tag, value, step)`` at every update, and the loss at every step it is told.
        checkpoint: where good states go, None: nowhere.

    Raises:
        PlanError: no sparse layer, an optimiser without the layers' values, a method that contradicts the one that
            `sparsify` was given, or one that changes layers' sizes under DistributedDataParallel, which cannot follow.

    Cost: between updates one pass over the weights per step (are they finite?); an update costs 1 to 3 steps.

    Example:
        >>> import gossamer as gs
        >>> method = gs.train.SET(sparsity=0.9, steps=200, every=50)
        >>> model = gs.train.sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), method)
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> sparsifier = gs.train.Sparsifier(model, optimizer, method)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        ...     update = sparsifier.step()
        >>> update.live, round(sparsifier.sparsity, 3)
        (474, 0.9)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: SparseTraining,
        *,
        writer: Writer | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if not isinstance(method, SparseTraining):
            raise PlanError(f"Sparsifier: found {type(method).__name__}, expected a method of gs.train, such as Static")
        self.method = method
        self._parts = method.parts()
        self._ranks = Ranks(model)
        self._model = self._ranks.model
        self._optimizer = optimizer
        self._layers = [
            Tracked(name, layer, self._ranks)
            for name, layer in sparse_layers(self._model).items()
            if not matches(keys_of(self._model, name), method.skip)
            and (not method.only or matches(keys_of(self._model, name), method.only))
        ]
        if not self._layers:
            raise PlanError("Sparsifier: found no sparse layer, expected a network from sparsify()")
        check_optimizer(optimizer, self._layers)
        _check_agreement(self._layers, method)
        if self._ranks.several and not self._parts.keeps_counts:
            raise PlanError(
                f"Sparsifier: {type(method).__name__}: found layers whose numbers of live weights change, expected "
                "constant ones under DistributedDataParallel, whose buckets are of fixed sizes"
            )
        for layer in self._layers:
            layer.layer.made_by = method
        self._writer, self._checkpoint = writer, checkpoint
        self._good: Path | None = None
        self._step = 0
        self._postponed = False
        self._scope_state: dict[str, float] = {}
        self._budget = {layer.name: layer.live for layer in self._layers}
        self._start = LivedAt(self._layers) if writer is not None else None
        self._ever = LivedAt(self._layers) if self._parts.counts_explored else None
        for layer in self._layers:
            self._parts.drop.begin(layer, self._key(layer, "begin"))
        if self._parts.exploration is not None:
            optimizer.register_step_pre_hook(self._before_optimizer)
            self._hide()
        if writer is not None:
            tell(writer, 0, self._layers, {}, self._start)
        self._arm()

    # -- what a user asks ------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._step

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights of the sparse layers."""
        live, size = sum(layer.live for layer in self._layers), sum(layer.size for layer in self._layers)
        return 1 - live / max(1, size)

    @property
    def explored(self) -> float:
        """Share of the weights that ever lived.

        Raises:
            PlanError: the method does not count them; `ITOP` does.
        """
        if self._ever is None:
            raise PlanError(f"{type(self.method).__name__}: found explored asked for, expected counts_explored=True")
        sizes = sum(layer.size for layer in self._layers)
        return sum(self._ever.share(layer) * layer.size for layer in self._layers) / max(1, sizes)

    def step(self, loss: Tensor | float | None = None) -> Update | None:
        """After every ``optimizer.step()``.

        Args:
            loss: of the step: looked at for NaN, and handed to the writer.

        Returns:
            What changed, or None: this step changes nothing.

        Raises:
            DataError: loss or weights are not finite, or gradients that are needed are gone.
        """
        self._step += 1
        check_health(self._model, self._step, loss, self._good)
        parts = self._parts
        if parts.exploration is not None:
            for layer in self._layers:  # still hidden if a scaler skipped the optimiser's step
                parts.exploration.show(layer)
        for layer in self._layers:
            parts.drop.observe(layer)
            if self._watches_all(self._step):
                cast(GrowScore, parts.grow).observe(layer)
            if parts.drift is not None:
                group = group_of(self._optimizer, layer.layer.values)
                rate = 0.0 if group is None else float(group["lr"])
                parts.drift.apply(layer, rate, self._key(layer, "drift"))
        update = None
        if self._postponed or parts.schedule.due(self._step):
            self._postponed = self._overflown()
            if not self._postponed:
                update = self._update()
        if parts.exploration is not None:
            self._hide()
        self._arm()
        self._tell(loss, update)
        self._save()
        return update

    def finish(self) -> None:
        """End of training: watches end; weights outside the forward pass (`TopKAST`) are dropped for good."""
        exploration = self._parts.exploration
        for layer in self._layers:
            layer.unwatch()
            if exploration is not None and "shown" in layer.memory:
                shown = layer.memory["shown"] > 0
                layer.memory.clear()
                relocate(layer, layer.positions[shown], self._optimizer, self._newborn(layer), None)

    # -- saving and resuming ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the network's and the optimiser's states; tensors, numbers and strings only."""
        state: dict[str, Any] = {
            "method": self._kind,
            "step": self._step,
            "postponed": self._postponed,
            "scope": dict(self._scope_state),
            "budget": dict(self._budget),
            "layers": {
                layer.name: {
                    "positions": _checksum(layer),
                    "memory": {k: v.clone() for k, v in layer.memory.items()},
                    "dense": {k: v.clone() for k, v in layer.dense.items()},
                }
                for layer in self._layers
            },
        }
        for name, bits in (("start", self._start), ("ever", self._ever)):
            if bits is not None:
                state[name] = {k: v.clone() for k, v in bits.bits.items()}
        return state

    @property
    def _kind(self) -> str:
        """Of the method: what two runs have to have in common for one to go on where the other was."""
        return f"{type(self.method).__name__} at {self.method.final_sparsity:.6g}"

    def _check_method(self, state: Mapping[str, Any]) -> None:
        if state.get("method", self._kind) != self._kind:  # older states do not say
            raise DataError(f"Sparsifier: found the state of {state['method']}, expected that of {self._kind}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was; load the network and the optimiser first.

        Raises:
            DataError: the state of another method, of other layers, or of a network that was not loaded.
        """
        self._check_method(state)
        saved, mine = set(state["layers"]), {layer.name for layer in self._layers}
        if saved != mine:
            raise DataError(f"Sparsifier: found the state of {sorted(saved)[:4]}, expected {sorted(mine)[:4]}")
        for layer in self._layers:
            if state["layers"][layer.name].get("positions", _checksum(layer)) != _checksum(layer):
                found = f"{layer.name}: found live weights at other places, expected those of the state"
                raise DataError(f"{found}: load the network's state first")
            for what, tensor in state["layers"][layer.name]["memory"].items():
                if len(tensor) != layer.live:
                    raise DataError(
                        f"{layer.name}: found {what} of {len(tensor)} live weights, expected {layer.live}: load the "
                        "network's state first"
                    )
            layer.memory = {k: v.clone() for k, v in state["layers"][layer.name]["memory"].items()}
            layer.dense = {k: v.clone() for k, v in state["layers"][layer.name]["dense"].items()}
        self._step, self._postponed = int(state["step"]), bool(state["postponed"])
        self._scope_state, self._budget = dict(state["scope"]), dict(state["budget"])
        for name, bits in (("start", self._start), ("ever", self._ever)):
            if bits is not None and name in state:
                bits.load(state[name])
        self._arm()

    def resume(self, path: str | Path) -> int:
        """Go on from a `Checkpoint`: network, optimiser, this, what ``also`` named, PyTorch's random numbers.

        Args:
            path: of the file.

        Returns:
            Steps that were taken; the data should go on after as many batches.

        Raises:
            DataError: no such file, or one of another network.
            FormatError: a damaged file.
        """
        state = read_state(path)
        check_fits(path, state, self._model, self._optimizer)
        self._check_method(state["sparsifier"])
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name, other in (self._checkpoint.also if self._checkpoint else {}).items():
            if name not in state["also"]:
                raise DataError(f"{path}: found no state of {name!r}, expected one, as in Checkpoint(also=…)")
            other.load_state_dict(state["also"][name])
        self.load_state_dict(state["sparsifier"])
        torch.set_rng_state(state["random"])
        self._good = Path(path)
        return self._step

    def save(self, path: str | Path) -> int:
        """Write what `resume` reads, atomically.

        Returns:
            Bytes written.
        """
        also = self._checkpoint.also if self._checkpoint else {}
        state = {
            "model": dict(self._model.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "sparsifier": self.state_dict(),
            "also": {name: other.state_dict() for name, other in also.items()},
            "random": torch.get_rng_state(),
        }
        return write_state(path, state)

    def _save(self) -> None:
        if self._checkpoint is not None and self._step % self._checkpoint.every == 0:
            if self._ranks.first:
                self.save(self._checkpoint.path)
            self._good = Path(self._checkpoint.path)

    # -- the parts at work -----------------------------------------------------------------------------------------

    def _key(self, layer: Tracked, what: str) -> int:
        return key_of(self.method.seed, layer.name, self._step, what)

    def _newborn(self, layer: Tracked) -> Callable[[str, int], Tensor]:
        return lambda what, count: self._parts.drop.newborn(what, count, self._key(layer, what))

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        del optimizer, args, kwargs
        assert self._parts.exploration is not None
        for layer in self._layers:
            self._parts.exploration.penalise(layer)
            self._parts.exploration.show(layer)

    def _hide(self) -> None:
        assert self._parts.exploration is not None
        for layer in self._layers:
            self._parts.exploration.hide(layer, self._step)

    def _watches_all(self, step: int) -> bool:
        grow = self._parts.grow
        return grow is not None and grow.watches_all and grow.watches(step, self._parts.schedule)

    def _arm(self) -> None:
        """Have the next step watched if growth needs its gradients."""
        grow, schedule, following = self._parts.grow, self._parts.schedule, self._step + 1
        needed = grow is not None and (grow.watches(following, schedule) or (self._postponed and self._watches()))
        if not needed or grow is None:
            for layer in self._layers:
                layer.unwatch()
            return
        everywhere = grow.watches_all or not isinstance(self._parts.structure, Free)
        for layer in self._layers:
            layer.watch(everywhere=everywhere)

    def _watches(self) -> bool:
        """Whether updates need gradients of dead weights."""
        grow = self._parts.grow
        return grow is not None and grow.watches_gradients

    def _overflown(self) -> bool:
        """Whether the gradients of this step are useless, as a scaler's are now and then: the update waits."""
        grads = [layer.layer.values.grad for layer in self._layers]
        return self._watches() and any(g is not None and not finite(g) for g in grads)

    def _wanted(self, layers: list[Tracked], step: int) -> Wanted:
        """What the schedule asks for after a step."""
        schedule = self._parts.schedule
        if schedule.constant_density:
            targets = {layer.name: layer.live for layer in layers}
        else:
            names = [layer.name for layer in self._layers]
            counts = self.method.live_counts(names, [layer.shape for layer in self._layers], step)
            targets = dict(zip(names, counts, strict=True))
        fraction = schedule.exchanged(step)
        exchanged = []
        for layer in layers:
            doomed, most = self._parts.drop.doomed(layer), max(layer.live, targets[layer.name])
            share = round(fraction * min(layer.live, targets[layer.name]))
            exchanged.append(min(share, layer.size - most) if doomed is None else doomed)
        live = tuple(layer.live for layer in layers)
        return Wanted(live, tuple(targets[layer.name] for layer in layers), tuple(exchanged))

    def _update(self) -> Update:
        parts, layers = self._parts, self._layers
        if self._watches() or isinstance(parts.drop, Taylor):
            # Layers that the step did not run stay as they are.
            layers = [layer for layer in layers if layer.layer.values.grad is not None]
            if not layers:
                raise DataError(
                    f"step {self._step}: found no gradient in any sparse layer, expected Sparsifier.step() after "
                    "optimizer.step() and before zero_grad()"
                )
        wanted = self._wanted(layers, self._step)
        scores = [parts.drop.score(layer, self._key(layer, "drop")) for layer in layers]
        kept = parts.scope.kept(scores, wanted, self._scope_state)
        following = self._following(layers, kept, wanted)
        moved = {}
        for i, layer in enumerate(layers):
            positions, source = following(i)  # one after the other, so that dense gradients exist one at a time
            self._ranks.agree(layer.name, positions)
            momentum = None if parts.grow is None else parts.grow.momentum(layer)
            moved[layer.name] = relocate(layer, positions, self._optimizer, self._newborn(layer), momentum, source)
            if parts.grow is not None:
                parts.grow.forget(layer)
            if self._ever is not None:
                self._ever.join(layer)
            layer.rest()
        return Update(self._step, moved)

    def _following(
        self, layers: list[Tracked], kept: list[Tensor], wanted: Wanted
    ) -> Callable[[int], tuple[Tensor, Tensor | None]]:
        """Number of a layer → its new positions and their sources."""
        parts = self._parts
        if parts.grow is None:

            def rest(i: int) -> tuple[Tensor, Tensor | None]:
                alive = places(kept[i])
                return layers[i].positions.index_select(0, alive), alive

            return rest
        grow = parts.grow
        if not isinstance(parts.structure, Free):

            def filled(i: int) -> tuple[Tensor, Tensor | None]:
                layer = layers[i]
                scores = grow.everywhere(layer, self._key(layer, "grow"))
                budget = self._budget[layer.name]
                return parts.structure.fill(layer.shape, budget, layer.positions, kept[i], scores), None

            return filled
        offered: dict[int, tuple[Tensor, Tensor]] = {}

        def offers(i: int, most: int) -> Tensor:
            if i not in offered:
                offered[i] = grow.candidates(layers[i], kept[i], most, self._key(layers[i], "grow"))
            return offered[i][1]

        survivors = tuple(int(stays.count_nonzero()) for stays in kept)
        room = Room(
            survivors,
            tuple(layer.size - alive for layer, alive in zip(layers, survivors, strict=True)),
            lambda i: grow.strength(layers[i]),
            offers,
            grow.comparable,
        )
        counts = parts.scope.grown(sum(wanted.target) - sum(room.survivors), wanted, room)

        def grown(i: int) -> tuple[Tensor, Tensor | None]:
            offers(i, counts[i])
            best, scores = offered.pop(i)
            new = best if len(best) == counts[i] else best[places(highest(scores, counts[i]))]
            return rejoined(layers[i].positions, kept[i], new)

        return grown

    def _tell(self, loss: Tensor | float | None, update: Update | None) -> None:
        if self._writer is None:
            return
        if loss is not None:
            number = float(loss.detach() if isinstance(loss, Tensor) else loss)
            self._writer.add_scalar("loss", number, self._step)
        if update is not None:
            tell(self._writer, self._step, self._layers, update.layers, self._start)
            if self._ever is not None:
                self._writer.add_scalar("explored", self.explored, self._step)


def _checksum(layer: Tracked) -> int:
    """Of the places of the live weights."""
    return zlib.crc32(layer.positions.cpu().numpy().data)


def _check_agreement(layers: list[Tracked], method: SparseTraining) -> None:
    """Refuse a method whose sparsity or structure is not that of the method that the layers were made for.

    Raises:
        PlanError: names both.
    """
    parts = method.parts()
    for layer in layers:
        before = layer.layer.made_by
        if not isinstance(before, SparseTraining):
            continue
        other = parts.schedule.constant_density and method.final_sparsity != before.final_sparsity
        if other or parts.structure != before.parts().structure:
            raise PlanError(f"Sparsifier: {layer.name}: found {method}, expected what sparsify() was given, {before}")

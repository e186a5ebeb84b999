"""What a user calls: `compress`, `load`, and the `Compressed` network in between."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.coding import Effort, check_effort
from gossamer.drive.block_journal import Checkpoint
from gossamer.drive.learning import learning, settled
from gossamer.drive.progress import NoProgress, Progress
from gossamer.drive.recipe import Recipe, run
from gossamer.drive.relative_entropy import RelativeEntropy
from gossamer.drive.sequential import BlockByBlock
from gossamer.drive.tune import Loss, Tune
from gossamer.encoding.delta import provide
from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.values import Affine, Codebook
from gossamer.encoding.weights import Kept
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.measure.ledger import Ledger, ledger_of
from gossamer.methods.base import Method
from gossamer.network.attach import attach, harvest, hold_statistics
from gossamer.network.blank import blank
from gossamer.network.inspect import refuse_live_only, specs
from gossamer.network.rebuild import materialise
from gossamer.store.container import announce, read_container
from gossamer.store.weights import read_weights
from gossamer.store.writer import write_container

if TYPE_CHECKING:
    from gossamer.runtime.lower import Lowered

__all__ = ["Compressed", "compress", "load"]

Network = nn.Module | Callable[[], nn.Module]


@final
class Compressed:
    """A network as encodings, with the ways of using it.

    Args:
        specs: its tensors.
        trees: per canonical name.
        network: module or factory of the original architecture, or None: `dense`, `trainable` and `lower` then need it.
        notes: recipe and plan as JSON.
        skipped: tensor or site → why a method left it as it was.
        path: the file it was read from, if any.
    """

    def __init__(
        self,
        specs: tuple[TensorSpec, ...],
        trees: Mapping[str, Encoding],
        network: Network | None,
        *,
        notes: Mapping[str, Any] | None = None,
        skipped: Mapping[str, str] | None = None,
        path: Path | None = None,
    ) -> None:
        self.specs = specs
        self.trees = dict(trees)
        self.notes = dict(notes or {})
        self.skipped = dict(skipped or {})
        self._network = network
        self._path = path
        self._spare: list[nn.Module] = []

    def _fresh(self) -> nn.Module:
        if self._network is None:
            raise DataError("found no network to put the weights into, expected load(path, into=…)")
        if self._spare:
            return self._spare.pop().eval()
        made = copy.deepcopy(self._network) if isinstance(self._network, nn.Module) else blank(self._network)
        return made.eval()

    def keep(self, network: nn.Module) -> None:
        """Keep a network just made by the factory, so that the first one asked for need not be made again."""
        self._spare.append(network)

    def dense(self) -> nn.Module:
        """The network with ordinary dense weights, in eval mode; physically smaller where channels were removed.

        Folded normalisations keep their statistics in train mode too.
        """
        network = materialise(self._fresh(), self.specs, self.trees)
        hold_statistics(network, self.specs, self.trees)
        return network

    def trainable(self, methods: Sequence[Method] = ()) -> nn.Module:
        """The network with its leaves attached: survivors, factors, scales and centroids are its parameters.

        Train it with any loop and optimiser, then hand it to `harvest`.

        Args:
            methods: the loop trains for them: weights compute as `gs.quantize.LearnedRate` or `LearnedStep` leave them
                while the numbers behind them and the steps train. `gs.rate` says what their symbols would take.

        Raises:
            PlanError: a method that does not learn its steps.
            CompositionError: a method that matches nothing.

        Example:
            >>> import gossamer as gs
            >>> small = gs.compress(nn.Linear(64, 64), [])
            >>> network = small.trainable([gs.quantize.LearnedRate(only="weight")])
            >>> small.harvest(network).trees["weight"].size_bits() < 4096 * 4 + 32
            True
        """
        if isinstance(methods, Method):
            raise PlanError(f"trainable: found {type(methods).__name__}, expected a list of methods")
        if methods:
            return learning(self._fresh(), self.specs, self.trees, methods).train()
        return attach(self._fresh(), self.specs, self.trees).train()

    def harvest(self, network: nn.Module) -> Compressed:
        """What a network from `trainable` has become, quantized if it was for methods; the network is not changed."""
        trees = harvest(settled(network), self.specs, self.trees)
        return Compressed(self.specs, trees, self._network, notes=self.notes, skipped=self.skipped)

    def lower(self, example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Lowered:
        """The network as a fast callable for this processor; per layer the fastest measured candidate.

        Args:
            example_inputs: as the network takes them, a mapping for keywords; candidates are timed at their batch size.
        """
        from gossamer.runtime.lower import lower

        dense = materialise(self._fresh(), self.specs, self.trees)
        return lower(dense, example_inputs, specs=self.specs, trees=self.trees)

    def save(self, path: str | Path, *, plan: bool = False, effort: Effort = "best") -> int:
        """Write one ``.gsm`` file, atomically.

        Args:
            path: where.
            plan: also store the recipe's plan and the reasons for what was skipped (costs bytes).
            effort: "fast" writes quantized tensors in a half to a twentieth of the time and reads most of them sooner,
                for none to a few per cent more bytes, up to a fourth where rows or columns differ much; the weights are
                the same. Floats are coded as ever.

        Returns:
            Bytes written.

        Raises:
            PlanError: another effort.
            DataError: a dtype that cannot be stored, or a file that cannot be written.
        """
        check_effort(effort)
        notes = {**self.notes, "skipped": self.skipped} if plan else {}
        return write_container(path, self.specs, self.trees, notes, effort)

    def ledger(self, *, zstd: bool = False) -> Ledger:
        """Where every byte goes: of the file it was loaded from, else of one written for the purpose.

        Args:
            zstd: also say what zstd -19 makes of the dense weights (about 3 MB/s).
        """
        if self._path is not None:
            return ledger_of(self._path, zstd=zstd, reasons=self.skipped)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.gsm"
            self.save(path)
            return ledger_of(path, zstd=zstd, reasons=self.skipped)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor in its original shape and dtype under all its names; removed channels are zero."""
        found: dict[str, Tensor] = {}
        for spec in self.specs:
            tree = self.trees[spec.name]
            dense = tree.to_dense().detach().to(spec.dtype).contiguous()
            if not isinstance(tree, (Affine, Codebook)):  # these compute new numbers, others may give their own away
                dense = dense.clone()
            found |= dict.fromkeys(spec.names, dense)
        return found


def compress(
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Iterable[Any] | None = None,
    tune: Tune | Callable[[nn.Module], None] | None = None,
    loss: Loss = F.cross_entropy,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Compressed:
    """Run a recipe over a network.

    Args:
        model: the dense network; not changed.
        recipe: methods, `Gradual` and `Tune` entries, in order.
        data: batches (inputs, targets) of known length, such as a DataLoader, for the entries that train.
        tune: fine-tune like this after every method; or a function that trains the network it is given in place.
        loss: (outputs, targets) → scalar.
        progress: where to report; None: nowhere.
        checkpoint: folder in which `BlockByBlock` and `RelativeEntropy` entries keep what they have done, or None.
        resume: go on with what is found there, or start if nothing is; without, finding something is an error.

    Returns:
        The compressed network.

    Raises:
        CompositionError: a method that does not accept what is there, matches nothing or changes nothing.
        PlanError: settings that make no sense, or a layer that would be all zero.
        DataError: weights that are not finite, or data that do not fit.

    Example:
        >>> from gossamer.methods.prune import Magnitude
        >>> small = compress(nn.Linear(8, 4), [Magnitude(sparsity=0.5)])
        >>> int((small.dense().weight != 0).sum())
        16
    """
    refuse_live_only(model, "compress")
    kept = _checkpoint(recipe, checkpoint, resume)
    how = progress or NoProgress()
    state = run(model, recipe, data=data, tune=tune, loss=loss, progress=how, checkpoint=kept, live=_live)
    notes = {"plan": state.plans}
    small = Compressed(state.specs, state.trees, state.model, notes=notes, skipped=state.skipped)
    shrunk = any(isinstance(node, Kept) for tree in state.trees.values() for _, node in tree.nodes())
    if shrunk and data is not None:
        batch = next(iter(data), None)
        if isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor):
            _check_same_width(state.model, small.dense(), batch[0][:1])
    return small


def _live(network: nn.Module) -> AbstractContextManager[None]:
    from gossamer.nn.products import live_products  # only where it is asked for: it brings the compiler

    return live_products(network)


def _checkpoint(recipe: Recipe, folder: str | Path | None, resume: bool) -> Checkpoint | None:
    if folder is None:
        if resume:
            raise PlanError("resume: found no checkpoint=, expected the folder of the run to go on with")
        return None
    if not any(isinstance(entry, (BlockByBlock, RelativeEntropy)) for entry in recipe):
        raise PlanError(
            "checkpoint: found no BlockByBlock or RelativeEntropy in the recipe, expected one: nothing else is kept"
        )
    return Checkpoint(Path(folder), resume)


def load(
    path: str | Path, into: Network | None = None, *, reference: str | Path | Mapping[str, Tensor] | None = None
) -> Compressed:
    """Read a ``.gsm`` file. No code is ever run from it.

    Args:
        path: the file.
        into: the architecture, as a factory or a module (whose weights are not used). Names and shapes must agree
            before anything is decoded. None: sizes, `ledger` and `state_dict` are available, networks are not.
        reference: the checkpoint that the file is a difference to (`gs.code.Delta`), as a file or tensors by name.

    Raises:
        DataError: no such file, or a reference without the tensors that it is a difference to.
        FormatError: damaged, hostile, or for another network.
    """
    expected = made = None
    announce(path)
    if into is not None:
        made = into if isinstance(into, nn.Module) else blank(into)
        if not isinstance(made, nn.Module):
            raise DataError(f"into: found {type(made).__name__}, expected a torch.nn.Module or a factory of one")
        expected = specs(made)
    container = read_container(path, expected)
    if reference is not None:
        known = reference if isinstance(reference, Mapping) else read_weights(reference)
        provide(container.trees, known)
    skipped = container.notes.get("skipped", {})
    loaded = Compressed(container.specs, container.trees, into, notes=container.notes, skipped=skipped, path=Path(path))
    if made is not None and made is not into:
        loaded.keep(made)
    return loaded


def _check_same_width(dense: nn.Module, small: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        before, after = dense(inputs), small(inputs)
    if before.shape != after.shape:
        raise CompositionError(f"found outputs of shape {tuple(after.shape)}, the network had {tuple(before.shape)}")

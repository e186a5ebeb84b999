"""Compression-identified exemplars: where a population of compressed networks left the answer of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.exemplars.running import check_data, predictions, told

__all__ = ["GroupAccuracy", "Pie", "modal", "pie"]

_LISTED = 200
_ROWS = 50

Member = Callable[[Tensor], Tensor] | Tensor


@dataclass(frozen=True)
class GroupAccuracy:
    """Top-1 accuracy on some of the examples, the mean over a population's networks.

    Args:
        examples: how many.
        dense: 0 to 1; None without examples.
        compressed: the same of the compressed networks.
        control: of the second dense population; None without one.
    """

    examples: int
    dense: float | None
    compressed: float | None
    control: float | None


@dataclass(frozen=True, eq=False)
class Pie:
    """Where the modal labels of dense and of compressed networks differ.

    Args:
        dense_networks: in the population.
        compressed_networks: in that one.
        true: int64 [n].
        dense: int64 [n], modal labels of the dense networks.
        compressed: int64 [n], of the compressed ones.
        control: int64 [n], of the second dense population, or None.
        certainty: float64 [n], the share of dense networks that give ``dense`` × the share of compressed ones that give
            ``compressed``.
        indices: int64, the exemplars, most certain first.
        all: accuracies on all examples.
        pies: accuracies on the exemplars.
        others: accuracies on the rest.
    """

    dense_networks: int
    compressed_networks: int
    true: Tensor
    dense: Tensor
    compressed: Tensor
    control: Tensor | None
    certainty: Tensor
    indices: Tensor
    all: GroupAccuracy
    pies: GroupAccuracy
    others: GroupAccuracy

    @property
    def disagreement(self) -> float:
        """Share of examples on which dense and compressed modal labels differ."""
        return len(self.indices) / len(self.true)

    @property
    def control_disagreement(self) -> float | None:
        """The same of the two dense populations: what chance in training alone does. None without a control."""
        return None if self.control is None else float((self.dense != self.control).double().mean())

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of every example; at most 200 indices and 50 rows."""
        groups = {"all": self.all, "pie": self.pies, "non_pie": self.others}
        listed = self.indices[:_LISTED].tolist()
        return {
            "examples": len(self.true),
            "dense_networks": self.dense_networks,
            "compressed_networks": self.compressed_networks,
            "pies": len(self.indices),
            "disagreement": self.disagreement,
            "control_disagreement": self.control_disagreement,
            "accuracy": {name: {"dense": g.dense, "compressed": g.compressed} for name, g in groups.items()},
            "control_accuracy": None
            if self.control is None
            else {name: group.control for name, group in groups.items()},
            "indices": listed,
            "rows": [
                {
                    "index": i,
                    "true": int(self.true[i]),
                    "dense": int(self.dense[i]),
                    "compressed": int(self.compressed[i]),
                }
                for i in listed[:_ROWS]
            ],
        }


def pie(
    dense: Sequence[Member],
    compressed: Sequence[Member],
    control: Sequence[Member] | None,
    inputs: Tensor | None,
    targets: Tensor,
    *,
    batch: int = 500,
) -> Pie:
    """Compare two populations of networks by the label that most of their members give.

    An example is an exemplar if the modal label of the dense networks differs from that of the compressed ones. Where
    labels are equally frequent the smaller number is the mode, in every population alike, so that ties which both share
    are no disagreement. ``control`` is a second dense population, trained in the same way from other seeds: its
    disagreement with the first is what would be there without any compression. All are of one size, since modes of few
    networks are noisier; train all three from seeds of their own, since a network that was pruned from a member of the
    dense population shares its mistakes and disagrees less than an independent one.

    Where modes differ at most one is right, so accuracy on exemplars is low by selection, and more so for networks
    that took part in it. The control's accuracy is without the latter.

    Args:
        dense: networks (inputs → scores [n, classes]) or their predictions (int64 [n]), mixed as you like.
        compressed: the same of compressed ones; ``lower()`` networks will do.
        control: the second dense population, disjoint from ``dense``, or None.
        inputs: [n, ...]; None if there are only predictions.
        targets: int64 [n].
        batch: examples at a time.

    Raises:
        DataError: an empty population, populations of different sizes, a network in two of them, networks without
            inputs, predictions that do not fit, networks of different numbers of classes, or labels beyond these.

    Cost: a forward pass per network. Exact.

    Example:
        >>> say = lambda *labels: torch.tensor(labels)
        >>> dense = [say(0, 1, 2, 2), say(0, 1, 2, 0), say(0, 1, 1, 2)]
        >>> small = [say(0, 1, 1, 2), say(0, 0, 1, 2), say(0, 0, 2, 2)]
        >>> found = pie(dense, small, None, None, say(0, 1, 2, 2))
        >>> found.disagreement, found.indices.tolist(), found.to_json()["rows"][1]
        (0.5, [1, 2], {'index': 2, 'true': 2, 'dense': 2, 'compressed': 1})

    Source: Hooker, Courville, Clark, Dauphin, Frome 2019, arXiv 1911.05248, section 2.2.
    """
    check_data("pie", targets if inputs is None else inputs, targets, batch)
    labelled: object = targets
    if not isinstance(labelled, Tensor) or labelled.dim() != 1:
        raise DataError(f"pie: targets: found {told(labelled)}, expected torch.int64 [n]")
    if int(targets.min()) < 0:
        raise DataError(f"pie: targets: found label {int(targets.min())}, expected classes from 0 on")
    groups: dict[str, Sequence[Member]] = {"dense": dense, "compressed": compressed}
    if control is not None:
        groups["control"] = control
    _check_populations(groups)
    widths: dict[str, int] = {}
    said = {name: _said(name, members, inputs, targets, batch, widths) for name, members in groups.items()}
    _check_classes({"targets": targets, **said}, widths)
    modes = {name: modal(labels) for name, labels in said.items()}
    shares = {n: (labels == modes[n]).double().mean(0) for n, labels in said.items()}
    certainty = shares["dense"] * shares["compressed"]
    true = targets.cpu()
    differs = modes["dense"] != modes["compressed"]
    order = certainty.argsort(descending=True, stable=True)
    right = {name: labels == true for name, labels in said.items()}

    def group(chosen: Tensor) -> GroupAccuracy:
        count = int(chosen.sum())
        means = [float(right[n][:, chosen].double().mean()) if n in right and count else None for n in _NAMES]
        return GroupAccuracy(count, *means)

    return Pie(
        dense_networks=len(dense),
        compressed_networks=len(compressed),
        true=true,
        dense=modes["dense"],
        compressed=modes["compressed"],
        control=modes.get("control"),
        certainty=certainty,
        indices=order[differs[order]],
        all=group(torch.ones_like(differs)),
        pies=group(differs),
        others=group(~differs),
    )


_NAMES = ("dense", "compressed", "control")


def modal(labels: Tensor) -> Tensor:
    """The most frequent label of every example over networks; of equally frequent ones the smallest.

    Args:
        labels: int64 [networks, n], from 0 on.

    Returns:
        int64 [n].

    Example:
        >>> modal(torch.tensor([[3, 1], [2, 1], [3, 0], [2, 0]])).tolist()
        [2, 0]
    """
    # Sorted down the networks, a label's count is the length of its run; argmax finds the first, so the smallest.
    ordered = labels.sort(0).values
    counts = (ordered.unsqueeze(0) == ordered.unsqueeze(1)).sum(1)
    return ordered.gather(0, counts.argmax(0, keepdim=True)).squeeze(0)


def _check_populations(groups: dict[str, Sequence[Member]]) -> None:
    seen: dict[int, str] = {}
    for name, members in groups.items():
        if not isinstance(members, (Sequence, Tensor, nn.ModuleList)):
            raise DataError(f"pie: {name}: found {type(members).__name__}, expected a list of networks or predictions")
        if len(members) == 0:
            raise DataError(f"pie: {name}: found no network, expected at least one")
        for i, member in enumerate(members):
            other = seen.setdefault(id(member), f"{name}[{i}]")
            if other != f"{name}[{i}]":
                raise DataError(f"pie: {name}[{i}]: found the network that {other} is, expected disjoint populations")
    sizes = {name: len(members) for name, members in groups.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError(f"pie: found {found} networks, expected as many in each: modes of fewer are noisier")


def _check_classes(labels: dict[str, Tensor], widths: dict[str, int]) -> None:
    """Refuse networks of different numbers of classes and labels that they do not have.

    Args:
        labels: int64, of targets and populations.
        widths: classes of each network; none of predictions, which do not say how many there are.
    """
    if not widths:
        return
    first, classes = next(iter(widths.items()))
    for where, width in widths.items():
        if width != classes:
            raise DataError(f"pie: {where}: found outputs of {width} classes, expected {classes} as of {first}")
    for name, found in labels.items():
        if int(found.max()) >= classes:
            raise DataError(f"pie: {name}: found label {int(found.max())}, expected 0 to {classes - 1}")


def _said(
    name: str, members: Sequence[Member], inputs: Tensor | None, targets: Tensor, batch: int, widths: dict[str, int]
) -> Tensor:
    """Labels by network, int64 [networks, n]; how many classes networks have is put into ``widths``."""
    found = []
    for i, member in enumerate(members):
        where = f"pie: {name}[{i}]"
        if isinstance(member, Tensor):
            if member.shape != targets.shape or member.dtype != torch.int64 or int(member.min()) < 0:
                raise DataError(f"{where}: found {told(member)}, expected predictions ({len(targets)},) of torch.int64")
            found.append(member.cpu())
            continue
        if inputs is None or not callable(member):
            raise DataError(f"{where}: found {type(member).__name__} without inputs, expected inputs or predictions")
        labels, widths[f"{name}[{i}]"] = predictions(where, member, inputs, batch)
        found.append(labels)
    return torch.stack(found)

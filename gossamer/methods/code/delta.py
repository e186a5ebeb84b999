"""Lossless differences against a reference checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gossamer.coding import encode_floats, encode_symbols
from gossamer.encoding import delta
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Evidence, Found, Method, Plan, Rule, Site, Step, Summary, matches

__all__ = ["Delta"]


@final
@dataclass(frozen=True, kw_only=True)
class Delta(Method):
    """Store a tensor as its exact difference to the tensor of the same name in another checkpoint.

    For a fine-tune that lies near its base: the difference of the bit patterns is coded instead of the numbers. The
    base is needed again to load the file, and is declared free in the ledger. A tensor whose difference codes no
    smaller than the tensor itself, or that the reference does not have in this shape and dtype, stays as it is.

    Args:
        reference: path of a ``.safetensors`` file, read tensor by tensor, or tensors by name.

    Cost: two coding passes per tensor. Always exact, for every bit pattern.

    Example:
        >>> Delta(reference="base.safetensors").reference
        'base.safetensors'
    """

    leaves_some: ClassVar[bool] = True
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)

    reference: str | Mapping[str, Tensor]

    def rules(self) -> tuple[Rule, ...]:
        """Dense tensors become differences."""
        made = Skeleton(delta.Delta, (("reference", Skeleton(delta.External)),))
        return (Rule(DENSE, lambda _: made),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return (
            "Only untouched tensors have an exact difference: use it alone, or with only= for what nothing else changes"
        )

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """Every tensor, buffers and biases included; a tied one too."""
        if matches(spec.names, self.skip):
            return Found((), "skipped by the recipe")
        if self.only and not matches(spec.names, self.only):
            return Found(())
        paths = tuple(p for p in skeleton.weight_paths() if skeleton.at(p).kind is Dense)
        return Found(paths) if paths else Found((), f"found {skeleton}, expected Dense. {self.advice(skeleton)}")

    @property
    def observes(self) -> bool:
        """Whether a difference is worth it is measured."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Coded bytes of the tensor and of its difference."""
        del evidence, ask
        made = self._difference(site, weight)
        if isinstance(made, str):
            return {"why": made}
        dense = weight.to_dense().detach().contiguous()
        if dense.is_floating_point() and dense.numel():
            plain = encode_floats(dense.reshape(-1).view(torch.uint8).numpy(), dense.element_size()).nbytes
        else:
            plain = encode_symbols(dense.numpy()).nbytes
        return {"plain": plain, "difference": encode_symbols(made.residual.numpy()).nbytes}

    def plan(self, sites: Any, summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """The sites for which it pays."""
        del ask
        steps, skipped = [], {}
        for site in sites:
            found = summaries[site.key]
            if "why" in found:
                skipped[site.key] = str(found["why"])
            elif found["difference"] >= found["plain"]:
                skipped[site.key] = (
                    f"its difference takes {found['difference']} bytes, the tensor itself {found['plain']}"
                )
            else:
                steps.append(Step((site.key,), {}))
        return Plan(tuple(steps), skipped=skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """The difference of one tensor."""
        made = self._difference(site, weight)
        if isinstance(made, str):
            raise PlanError(f"Delta: {site.key}: {made}")
        return made

    def _difference(self, site: Site, weight: Encoding) -> delta.Delta | str:
        base = _read(self.reference, site.spec.names)
        if base is None:
            return "the reference has no tensor of that name"
        name, tensor = base
        dense = weight.to_dense().detach()
        if tuple(tensor.shape) != site.spec.shape or tensor.dtype != dense.dtype:
            expected = f"{site.spec.shape}, {dense.dtype}"
            return f"the reference has it as {tuple(tensor.shape)}, {tensor.dtype}, expected {expected}"
        external = delta.External.of(name, tensor)
        part: tuple[int, ...] = ()
        if site.path.startswith("/members."):
            size, number = dense.numel(), int(site.path.rpartition(".")[2])
            part = (number * size, (number + 1) * size)
        order = site.spec.output_first if site.path == "/inner" else ()
        return delta.difference(dense, external, part, order)


def _read(reference: str | Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[str, Tensor] | None:
    if isinstance(reference, Mapping):
        return next(((n, reference[n].detach()) for n in names if n in reference), None)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(reference, "pt") as file:
            known = set(file.keys())
            return next(((n, file.get_tensor(n)) for n in names if n in known), None)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{reference}: reference cannot be read, expected a .safetensors file: {reason}") from error

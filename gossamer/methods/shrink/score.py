"""What a channel is worth: per tensor a small summary, from which the channels of a coupling are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gossamer.encoding.node import computable
from gossamer.errors import PlanError
from gossamer.methods.shrink.coupling import Coupling, Member

__all__ = ["NEEDS", "Score", "greedy_order", "merged_into", "refit", "score_of", "summary_of"]

Score = Literal["magnitude", "taylor", "batchnorm", "influence", "apoz", "reconstruction", "merge"]

# Statistics of a layer's inputs that each score reads.
NEEDS: Mapping[str, frozenset[str]] = {
    "taylor": frozenset({"grad"}),
    "apoz": frozenset({"zeros", "count"}),
    "reconstruction": frozenset({"gram"}),
}

Summaries = Mapping[str, Mapping[str, Tensor]]

_RIDGE = 0.03  # on MiniLM 0.1 is a little better with 8 to 32 mails, 0.001 loses most of the gain


def summary_of(score: str, weight: Tensor, evidence: Mapping[str, Tensor], *, plain: bool) -> dict[str, Tensor]:
    """What one tensor says about its rows and about the inputs that it reads.

    Args:
        score: which.
        weight: [out, in, *kernel], or [n] for biases and normalisations.
        evidence: statistics of the inputs, by name; [in · Π kernel].
        plain: whether the tensor is a weight of a layer that multiplies.

    Returns:
        "rows" float64 [out]: squared norms; "values": a vector itself; "gram" [out, out] of the rows (merge);
        "columns" [in]: Σ w · dL/dw (Taylor); "live" [in]: share of inputs that are not zero;
        "outputs" [in, in]: Σ over the data of the product of what two inputs add to the outputs.
    """
    w = computable(weight).double()
    if w.dim() == 1 and score != "taylor":
        return {"rows": w.square(), "values": w}
    if w.dim() < 2:
        return {}
    found = {"rows": w.flatten(1).square().sum(1), "across": w.square().transpose(0, 1).flatten(1).sum(1)}
    ins = w.shape[1]
    if score == "merge":
        found["gram"] = w.flatten(1) @ w.flatten(1).T  # [out, in·k] @ [in·k, out]
    if not plain or not NEEDS.get(score, frozenset()) <= evidence.keys():
        return found
    if score == "taylor":
        found["columns"] = (w * evidence["grad"].double()).transpose(0, 1).flatten(1).sum(1)
    if score == "apoz":
        zeros = evidence["zeros"].double().view(ins, -1) / evidence["count"].double().clamp_min(1)
        found["live"] = 1 - zeros.mean(1)
    if score == "reconstruction":
        shared = (w.flatten(1).T @ w.flatten(1)) * evidence["gram"].double()  # [in·k, in·k]
        kernel = shared.shape[0] // ins
        found["outputs"] = shared.view(ins, kernel, ins, kernel).sum((1, 3))
    return found


def score_of(score: str, coupling: Coupling, summaries: Summaries) -> Tensor | str:
    """Scores of a coupling's channels, float64 [channels], higher = keep; or why there are none.

    magnitude, merge: ‖rows‖₂ over all weights that make the channel. taylor: |Σ w · dL/dw| over what reads it, the
    first-order change of the loss when it is read as zero. batchnorm: Σ |γ|. apoz: share of its values that are not
    zero where it is read. reconstruction: the error of the readers' outputs when it and all worse ones are gone, in
    the order in which a greedy search removes them, as a share of all outputs.
    """
    if score in ("magnitude", "merge"):
        return sum((_over(m, _rows(m, summaries)) for m in coupling.rows()), torch.zeros(())).sqrt()
    if score == "batchnorm":
        gammas = [m for m in coupling.members if _is_gamma(m, coupling)]
        if not gammas:
            return "no BatchNorm scales its channels"
        return sum((_over(m, summaries[m.tensor]["values"].abs()) for m in gammas), torch.zeros(()))
    key = {"taylor": "columns", "apoz": "live", "reconstruction": "outputs"}[score]
    readers = [m for m in coupling.readers() if key in summaries[m.tensor]]
    if not readers or (score == "reconstruction" and len(readers) < len(coupling.readers())):
        return "what reads its channels has no statistics of its inputs"
    if score == "taylor":
        return sum((_over(m, summaries[m.tensor][key]) for m in readers), torch.zeros(())).abs()
    if score == "apoz":
        return torch.stack([summaries[m.tensor][key][m.index].mean(1) for m in readers]).mean(0)
    products = torch.zeros(coupling.channels, coupling.channels, dtype=torch.float64)
    for m in readers:
        n, k = m.index.shape
        flat = m.index.reshape(-1)
        products += summaries[m.tensor][key][flat][:, flat].view(n, k, n, k).sum((1, 3))
    order, errors = greedy_order(products)
    scores = torch.empty_like(errors)
    steps = torch.linspace(0, 1e-9, len(order), dtype=torch.float64)  # errors may stay level: the order decides then
    scores[order] = errors.cummax(0).values / products.sum().abs().clamp_min(1e-30) + steps
    return scores


def _rows(member: Member, summaries: Summaries) -> Tensor:
    return summaries[member.tensor]["rows" if member.dim == 0 else "across"]


def _over(member: Member, per_index: Tensor) -> Tensor:
    return per_index[member.index].sum(1)


def _is_gamma(member: Member, coupling: Coupling) -> bool:
    owner, _, key = member.tensor.rpartition(".")
    held = {m.tensor for m in coupling.members}
    return key == "weight" and f"{owner}.running_var" in held


def greedy_order(products: Tensor) -> tuple[Tensor, Tensor]:
    """Order in which channels are best removed one by one, and the error after each.

    Removing the set T costs Σ_{i, j ∈ T} products[i, j], the energy of what T adds to the outputs.

    Args:
        products: float64 [n, n], symmetric: inner products of the channels' contributions over the data.

    Source: Luo et al. 2017, ThiNet, arXiv 1707.06342, section 3.2.
    """
    n = len(products)
    order, errors = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.float64)
    cost, cross, gone = products.diagonal().clone(), torch.zeros(n, dtype=torch.float64), 0.0
    free = torch.ones(n, dtype=torch.bool)
    for step in range(n):
        total = torch.where(free, cost + 2 * cross, torch.inf)
        best = int(total.argmin())
        gone += float(total[best])
        order[step], errors[step], free[best] = best, gone, False
        cross += products[best]
    return order, errors


def refit(weight: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
    """Weights of the inputs that stay, so that ‖X Wᵀ − X_S W'ᵀ‖² + ‖(W' − W_S) Λ^½‖² is smallest over the data.

    W' = W_S + W_T G[T, S] (G[S, S] + Λ)⁻¹, T the inputs that go, Λ = 0.03 of the diagonal of G[S, S]: where samples are
    fewer than inputs, what they do not determine stays as it was.

    Args:
        weight: [out, in, *kernel].
        keep: bool [in], True = kept.
        gram: G = Σ x xᵀ [in · Π kernel, in · Π kernel].

    Returns:
        [out, kept, *kernel], in the weight's dtype.
    """
    kernel = weight[0, 0].numel()
    stays = keep.repeat_interleave(kernel)
    w, g = computable(weight).double().flatten(1), gram.double()
    inner = g[stays][:, stays]
    own = inner.diagonal()
    ridge = torch.diag(_RIDGE * own + 1e-6 * float(g.diagonal().mean().clamp_min(1e-30)))  # dead inputs do no harm
    lost = w[:, ~stays] @ g[~stays][:, stays]  # [out, gone] @ [gone, kept] → [out, kept]
    fitted: Tensor = w[:, stays] + torch.linalg.solve(inner + ridge, lost.T).T
    return fitted.to(weight.dtype).view(weight.shape[0], -1, *weight.shape[2:])


def merged_into(coupling: Coupling, keep: Tensor, summaries: Summaries) -> list[tuple[int, int, float]] | str:
    """Which kept channel computes most nearly the same as each removed one, and how much of it: or why none can say.

    With rows a of a removed and b of a kept channel (biases and a BatchNorm folded in), the kept one with the largest
    cosine takes its place with the factor ‖a‖ / ‖b‖, if the cosine is positive. Exact for activations with
    f(s·x) = s·f(x), s > 0, such as ReLU, and parallel rows.

    Source: Kim et al. 2020, Neuron Merging, arXiv 2010.13160, section 3.
    """
    if len(coupling.producers) != 1 or not coupling.exact:
        return "more than one layer makes its channels, or they are normalised together"
    owner = coupling.producer.rpartition(".")[0]
    at = {m.tensor: m for m in coupling.members if m.dim == 0 and m.index.shape[1] == 1}
    if coupling.producer not in at:
        return "its channels are more than one row each"
    place = at[coupling.producer].index[:, 0]
    gram = summaries[coupling.producer]["gram"][place][:, place]

    def values(name: str, default: float) -> Tensor:
        if name in at:
            return summaries[name]["values"][at[name].index[:, 0]]
        return torch.full((coupling.channels,), default, dtype=torch.float64)

    bias = values(f"{owner}.bias", 0.0)
    norms = {t.rpartition(".")[0] for t in at if t.endswith(".running_var")}
    if len(norms) > 1:
        return "several normalisations follow it"
    for norm in norms:
        gain = values(f"{norm}.weight", 1.0) / (values(f"{norm}.running_var", 1.0) + 1e-5).sqrt()
        bias = (bias - values(f"{norm}.running_mean", 0.0)) * gain + values(f"{norm}.bias", 0.0)
        gram = gram * gain[:, None] * gain
    gram = gram + bias[:, None] * bias
    norm_of = gram.diagonal().clamp_min(0).sqrt()
    cosine = gram / (norm_of[:, None] * norm_of).clamp_min(1e-30)
    kept = keep.nonzero()[:, 0]
    found = []
    for c in (~keep).nonzero()[:, 0].tolist():
        best = kept[int(cosine[c, kept].argmax())]
        if float(cosine[c, best]) > 0:
            found.append((c, int(best), float(norm_of[c] / norm_of[best])))
    return found


def check_evidence(score: str, summaries: Summaries, readers: Sequence[str]) -> None:
    """Refuse a score whose statistics nobody gathered.

    Raises:
        PlanError: names the score.
    """
    key = {"taylor": "columns", "apoz": "live", "reconstruction": "outputs"}.get(score)
    if key and not any(key in summaries[r] for r in readers):
        raise PlanError(f"score {score!r}: found no statistics of the layers' inputs, expected data=… to gather them")

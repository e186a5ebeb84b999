"""What methods share that judge a weight by what it does to a layer's inputs: ‖(W − Ŵ)·Xᵀ‖² = tr(D·G·Dᵀ), G = XᵀX.

Source: Golub and Van Loan 2013, Matrix Computations, sections 4.2 and 5.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from gossamer.errors import DataError, PlanError

__all__ = [
    "UNSEEN",
    "best_product",
    "check_damping",
    "check_inputs",
    "gram_of",
    "output_error",
    "root_of",
    "solved_left",
    "weighted",
]

UNSEEN = "found no inputs of it in the data"
_MOST_DAMPING = 1e-2


def check_inputs(method: str, inputs: str, known: tuple[str, ...], damping: float) -> None:
    """Refuse settings that say nothing of how inputs count.

    Raises:
        PlanError: names the setting.
    """
    if inputs not in known:
        expected = " or ".join((", ".join(known[:-1]), known[-1]))
        raise PlanError(f"{method}: inputs: found {inputs!r}, expected {expected}")
    check_damping(method, damping)


def check_damping(method: str, damping: float) -> None:
    """Refuse a share of the mean square outside of 0 to 1, or none.

    Raises:
        PlanError: names the setting.
    """
    if not 0 < damping <= 1:
        raise PlanError(f"{method}: damping: found {damping}, expected above 0 to 1")


def gram_of(
    where: str, shape: tuple[int, ...], evidence: Mapping[str, Tensor], damping: float, *, sums: bool = False
) -> Tensor | None:
    """The mean of x·xᵀ over a layer's inputs, damped, at a mean square of 1; or its sum.

    Inputs that were never anything but zero, and directions that no sample shows, count ``damping``: what the weight
    is there is kept where nothing else is lost by it.

    Args:
        where: method and tensor, for messages.
        shape: of the weight [out, *rest].
        evidence: "gram", [in, in] with in = Π rest.
        damping: of the mean square, above 0.
        sums: keep the size of the sum over all inputs, to compare layers with.

    Returns:
        float64 [in, in], symmetric, positive definite up to rounding; None: nothing is known of the inputs.

    Raises:
        DataError: a matrix of another size, or not finite.
    """
    if "gram" not in evidence:
        return None
    gram = evidence["gram"].double()
    size = prod(shape[1:])
    if tuple(gram.shape) != (size, size):
        raise DataError(f"{where}: found a Gram matrix of {tuple(gram.shape)}, expected {(size, size)}")
    if not bool(torch.isfinite(gram).all()):
        raise DataError(f"{where}: found a Gram matrix that is not finite")
    gram = (gram + gram.T) / 2
    mean = gram.diagonal().mean()
    gram = gram / mean if float(mean) > 0 else torch.zeros_like(gram)
    gram.diagonal().add_(damping)
    return gram * mean if sums and float(mean) > 0 else gram


def root_of(gram: Tensor) -> Tensor:
    """Lower triangular L with L·Lᵀ = G; more damping where rounding made G indefinite.

    Args:
        gram: float64 [n, n].

    Returns:
        float64 [n, n], regular.

    Example:
        >>> root_of(torch.tensor([[4.0, 2.0], [2.0, 2.0]]).double()).tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    mean, damping = float(gram.diagonal().mean()), 0.0
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damping * mean)
        found, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            root: Tensor = found
            return root
        if damping >= _MOST_DAMPING:
            raise DataError("a Gram matrix: found negative eigenvalues, expected a sum of squares")
        damping = max(10 * damping, 1e-9)


def best_product(matrix: Tensor, gram: Tensor, rank: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """u and v of the least ‖(W − u·v)·Xᵀ‖: with G = L·Lᵀ the truncated SVD of W·L.

    The product is the weight projected on the leading singular vectors, on the left or on the right, so at full rank it
    is the weight whatever the vectors are. Each component has one size in both factors, and signs are fixed.

    Args:
        matrix: W, float64 [out, in].
        gram: G, float64 [in, in].
        rank: 1 to the smaller side.
        weights: how often each row of W counts, float64 [out], above 0; None: once.

    Returns:
        float64 [out, rank] and [rank, in].

    Cost: a Cholesky factor of G, an eigendecomposition of the smaller side.

    Source: Eckart and Young 1936; Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3.2.
    """
    root = root_of(gram)
    scaled = weighted(matrix, weights)
    whitened = scaled @ root  # [out, in] · [in, in]
    if len(matrix) <= matrix.shape[1]:
        left = torch.linalg.eigh(whitened @ whitened.T)[1].flip(1)[:, :rank]
        u, v = left, left.T @ scaled  # [rank, out] · [out, in]
        u = u if weights is None else u / weights[:, None]
    else:
        right = torch.linalg.eigh(whitened.T @ whitened)[1].flip(1)[:, :rank]
        u = matrix @ (root @ right)  # [out, in] · [in, rank]
        v = torch.linalg.solve_triangular(root.T, right, upper=True).T  # right.T · root⁻¹
    return _balanced(u, v)


def weighted(matrix: Tensor, weights: Tensor | None) -> Tensor:
    """Rows times their weights, if any."""
    return matrix if weights is None else matrix * weights[:, None]


def _balanced(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, columns of u as long as rows of v, and the largest entry of each column of u positive."""
    a, b = u.norm(dim=0), v.norm(dim=1)
    size = torch.where((a > 0) & (b > 0), (b / a.clamp_min(torch.finfo(torch.float64).tiny)).sqrt(), 1.0)
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))[0]  # LAPACK leaves the signs open
    size = torch.where(largest < 0, -size, size)
    return u * size, v / size[:, None]


def solved_left(weight: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """The u of the least ‖(W − u·V)·Xᵀ‖: W·G·Vᵀ·(V·G·Vᵀ)⁻¹; of several, the one of least norm.

    Args:
        weight: W, float64 [out, in].
        right: V, float64 [rank, in].
        gram: G, float64 [in, in].

    Returns:
        float64 [out, rank].

    Source: Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3.3 (parameter update).
    """
    seen = right @ gram  # [rank, in] · [in, in]
    inner = seen @ right.T  # [rank, in] · [in, rank]
    # The pseudo-inverse takes the unit of each direction from the matrix: scaled to a diagonal of 1 first.
    scale = inner.diagonal().clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    inverse: Tensor = torch.linalg.pinv(inner * scale[:, None] * scale, rtol=1e-12, hermitian=True)
    found: Tensor = (weight @ seen.T * scale) @ inverse * scale  # [out, in] · [in, rank], then · [rank, rank]
    return found


def output_error(difference: Tensor, gram: Tensor) -> float:
    """tr(D·G·Dᵀ) = ‖D·Xᵀ‖².

    Args:
        difference: D, [out, in].
        gram: G, float64 [in, in].
    """
    d = difference.double()
    return float((d @ gram * d).sum())

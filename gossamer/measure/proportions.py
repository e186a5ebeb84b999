"""Statistics of right and wrong answers: Wilson's interval, McNemar's exact test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from gossamer.errors import DataError

__all__ = ["difference", "holm", "mcnemar", "wilson"]


def wilson(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The shares p that so many successes do not speak against: |p̂ − p| ≤ z √(p (1 − p) / n).

    Unlike p̂ ± z √(p̂ (1 − p̂) / n) it stays within 0 to 1, and right for few samples and shares near 0 or 1.

    Args:
        correct: successes.
        count: tries, each independent of the others; 0: nothing is known.
        level: of confidence.

    Returns:
        (low, high).

    Raises:
        DataError: counts or a level that make no sense.

    Example:
        >>> [round(end, 4) for end in wilson(90, 100)]
        [0.8256, 0.9448]

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not (0 <= correct <= count and 0 < level < 1):
        raise DataError(f"found {correct} of {count} at level {level}, expected 0 ≤ correct ≤ count, 0 < level < 1")
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / count
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # The ends are these exactly; rounding would leave 1e-17.
    low = 0.0 if correct == 0 else max(0.0, (middle - reach) / scale)
    high = 1.0 if correct == count else min(1.0, (middle + reach) / scale)
    return low, high


def difference(first: tuple[int, int], second: tuple[int, int], level: float = 0.95) -> tuple[float, float]:
    """Interval of p₁ − p₂ for two independent samples, out of Wilson's intervals of both.

    Args:
        first: (successes, tries) of the first, at least one try.
        second: the same of the second.
        level: of confidence.

    Example:
        >>> [round(end, 4) for end in difference((56, 70), (48, 80))]
        [0.0524, 0.3339]

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10.
    """
    if first[1] < 1 or second[1] < 1:
        raise DataError(f"found {first[1]} and {second[1]} tries, expected at least one of both")
    (low_1, high_1), (low_2, high_2) = wilson(*first, level), wilson(*second, level)
    one, two = first[0] / first[1], second[0] / second[1]
    below, above = math.hypot(one - low_1, high_2 - two), math.hypot(high_1 - one, two - low_2)
    return one - two - below, one - two + above


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value that two networks are right equally often, from where only one of them is.

    If they are, each sample on which they differ in being right is a fair coin: p = 2 P(X ≤ min(lost, gained)),
    X ~ Binomial(lost + gained, ½), at most 1.

    Args:
        lost: samples that only the first gets right.
        gained: samples that only the second gets right.

    Cost: min(lost, gained) products of whole numbers of lost + gained bits. Exact, rounded once.

    Example:
        >>> mcnemar(6, 0), mcnemar(4, 5), mcnemar(0, 0)
        (0.03125, 1.0, 1.0)

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions.
    """
    if lost < 0 or gained < 0:
        raise DataError(f"found {lost} and {gained} samples, expected counts")
    tries, few = lost + gained, min(lost, gained)
    ways = tail = 1
    for k in range(1, few + 1):
        ways = ways * (tries - k + 1) // k
        tail += ways
    return min(1.0, 2 * tail / 2**tries) if 2 * tail < 2**tries else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p-values such that rejecting those up to α errs anywhere with probability α at most, whatever depends on what.

    The i-th smallest of m becomes the largest of (m − j + 1) p_(j) over j ≤ i, at most 1.

    Args:
        values: p-values, in any order.

    Returns:
        The adjusted ones in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted

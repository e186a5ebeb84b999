"""Dividing a number of weights among layers: whole numbers that add up exactly."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shared_out"]


def shared_out(total: int, weights: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to ``weights``, none above its capacity, that add up to ``total`` exactly.

    What a full one cannot take goes to the others in proportion; fractions go to the largest remainders, ties to the
    first. Where all weights of those that still have room are zero, room itself is the weight.

    Args:
        total: to divide, 0 to the sum of the capacities.
        weights: finite, not negative.
        capacities: most that each can take.

    Raises:
        ValueError: more than fits.

    Example:
        >>> shared_out(10, [1.0, 1.0, 8.0], [9, 9, 5])
        [3, 2, 5]
    """
    if not 0 <= total <= sum(capacities):
        raise ValueError(f"found {total} to divide, expected 0 to {sum(capacities)}")
    shares = [0] * len(weights)
    room = [i for i, capacity in enumerate(capacities) if capacity > 0]
    left = total
    weight = list(weights)
    while room and left:
        whole = sum(weight[i] for i in room)
        if whole <= 0:
            weight = [float(c) for c in capacities]
            whole = sum(weight[i] for i in room)
        full = [i for i in room if weight[i] * left / whole >= capacities[i]]
        if not full:
            exact = {i: weight[i] * left / whole for i in room}
            for i in room:
                shares[i] = min(int(exact[i]), capacities[i])
            left -= sum(shares[i] for i in room)
            order = sorted(room, key=lambda i: (shares[i] - exact[i], i))
            while left:
                for i in order:
                    if left and shares[i] < capacities[i]:
                        shares[i] += 1
                        left -= 1
            break
        for i in full:
            shares[i] = capacities[i]
            left -= capacities[i]
        room = [i for i in room if i not in full]
    return shares

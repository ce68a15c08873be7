"""The best way to pair things, each with one at most."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["best_pairs"]


def best_pairs(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs of rows and columns with the largest sum of weights (the Hungarian algorithm, cubic in the longer side).

    Args:
        weights: ``[rows][columns]``, at least 0 each; no row or no column is a problem without pairs.

    Returns:
        Row and column of each pair, by row; as many as the shorter side has.

    Raises:
        ValueError: If rows differ in length, or a weight is negative or no number.

    Example:
        >>> best_pairs([[0.9, 0.8], [0.7, 0.0]])
        [(0, 1), (1, 0)]
    """
    if len({len(row) for row in weights}) > 1 or not all(weight >= 0 for row in weights for weight in row):
        raise ValueError("expected rows of one length with weights of at least 0")
    if not weights or not weights[0]:
        return []
    if len(weights) > len(weights[0]):
        return sorted((row, column) for column, row in best_pairs(list(zip(*weights, strict=True))))
    return sorted(_assign([[-weight for weight in row] for row in weights]))


def _assign(costs: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Least total cost, a column for every row: rows join one by one along cheapest alternating paths (Jonker, Volgenant)."""
    rows, columns = len(costs), len(costs[0])
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # row of each column, counted from 1; column 0 holds the row that looks for one
    for new in range(1, rows + 1):
        owner[0], column = new, 0
        slack, before, seen = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            seen[column], row = True, owner[column]
            free = [place for place in range(1, columns + 1) if not seen[place]]
            for place in free:
                reduced = costs[row - 1][place - 1] - row_price[row] - column_price[place]
                if reduced < slack[place]:
                    slack[place], before[place] = reduced, column
            column = min(free, key=slack.__getitem__)
            step = slack[column]
            for place in range(columns + 1):
                if seen[place]:
                    row_price[owner[place]] += step
                    column_price[place] -= step
                else:
                    slack[place] -= step
        while column:
            owner[column], column = owner[before[column]], before[column]
    return [(owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column]]

"""Assignment: the cheapest way to give every row a column of its own.

*Source:* Crouse, "On Implementing 2D Rectangular Assignment Algorithms", IEEE TAES 2016: rows are
added one by one along shortest augmenting paths with dual variables (Jonker and Volgenant 1987).
"""

import numpy as np

from kdcache.shapes import Float, Int64


def assign(cost: Float[np.ndarray, "R C"]) -> Int64[np.ndarray, " R"]:
    """The column of each row; no column twice, the sum of their costs the least. O(R^2 C)."""
    num_rows, num_columns = cost.shape
    assert num_rows <= num_columns, "there are too few columns"
    row_price = np.zeros(num_rows)
    column_price = np.zeros(num_columns)
    row_of = np.full(num_columns, -1)
    column_of = np.full(num_rows, -1)
    for new in range(num_rows):
        distance = np.full(num_columns, np.inf)
        came_from = np.full(num_columns, -1)
        seen = np.zeros(num_columns, np.bool_)
        row, reached = new, 0.0
        while True:  # Dijkstra from the new row to the nearest free column
            through = reached + cost[row] - row_price[row] - column_price
            better = ~seen & (through < distance)
            distance[better] = through[better]
            came_from[better] = row
            column = int(np.where(seen, np.inf, distance).argmin())
            reached = float(distance[column])
            seen[column] = True
            if row_of[column] < 0:
                break
            row = int(row_of[column])
        taken = seen.copy()
        taken[column] = False
        row_price[new] += reached
        row_price[row_of[taken]] += reached - distance[taken]
        column_price[seen] -= reached - distance[seen]
        while column >= 0:  # shift the path by one
            row = int(came_from[column])
            row_of[column] = row
            column, column_of[row] = int(column_of[row]), column
    return column_of.astype(np.int64)

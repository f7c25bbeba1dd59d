"""Focal attention in plain loops, the way the authors' code goes about it.

It moves whole maps of token names, cuts windows out of them and unfolds pooled maps cell by cell,
where mmfocal computes positions. It imports nothing from mmfocal.
"""

import numpy as np


def ring_as_authors_list_it(window, expand):
    """Four copies of the window, moved along the diagonals; what lies on the window is cut."""
    listed = []
    for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1)) if expand else ():
        for row in range(window):
            for col in range(window):
                at = (row + down * expand, col + right * expand)
                if not (0 <= at[0] < window and 0 <= at[1] < window):
                    listed.append(at)
    return listed


def keys_of_windows(
    height, width, window, expand=0, shift=0, level=1, focal_window=1, border='wrap'
):
    """Keys of every window of a map, as names.

    Returns:
        A list over windows of ``(queries, keys)``. A query is ``(name, seam region)``. A key is
        ``(name, region)``, with region 0 where every query may see it, or None where none may. A
        name is ``('token', row, col)`` on the padded map or ``('cell', level, row, col)``.
    """
    padded_height = -(-height // window) * window
    padded_width = -(-width // window) * window
    names = np.empty((padded_height, padded_width), dtype=object)
    regions = np.empty((padded_height, padded_width), dtype=object)
    for row in range(padded_height):
        for col in range(padded_width):
            names[row, col] = ('token', row, col)
    names = np.roll(names, (-shift, -shift), axis=(0, 1))
    for row in range(padded_height):
        for col in range(padded_width):
            behind_row = shift > 0 and row >= padded_height - shift
            behind_col = shift > 0 and col >= padded_width - shift
            regions[row, col] = (behind_row, behind_col)

    def real(name):
        return name[1] < height and name[2] < width

    windows = []
    for top in range(0, padded_height, window):
        for left in range(0, padded_width, window):
            queries, keys = [], []
            for row in range(top, top + window):
                for col in range(left, left + window):
                    name, region = names[row, col], regions[row, col]
                    queries.append((name, region))
                    hidden = border == 'mask' and not real(name)
                    keys.append(None if hidden else (name, region if shift else 0))
            listed = ring_as_authors_list_it(window, expand)
            once = [at for at in dict.fromkeys(listed) if listed.count(at) == 1]
            twice = [at for at in dict.fromkeys(listed) if listed.count(at) == 2]
            for at in once + twice:
                place = (top + at[0], left + at[1])
                wrapped = (place[0] % padded_height, place[1] % padded_width)
                name = names[wrapped]
                if border == 'wrap':
                    keys.append((name, 0))
                elif place != wrapped or not real(name):
                    keys.append(None)
                else:
                    keys.append((name, regions[wrapped] if shift else 0))
            for pooled in range(1, level):
                keys += _cells(
                    names,
                    real,
                    top // window,
                    left // window,
                    window,
                    pooled,
                    focal_window,
                    border,
                )
            windows.append((queries, keys))
    return windows


def _cells(names, real, window_row, window_col, window, level, focal_window, border):
    cells = 2 ** (level - 1)
    side = window // cells
    rows, cols = names.shape[0] // window * cells, names.shape[1] // window * cells
    top, left = (names.shape[0] - rows * side) // 2, (names.shape[1] - cols * side) // 2
    reach = focal_window // 2
    keys = []
    for row in range(window_row * cells - reach, window_row * cells + cells + reach):
        for col in range(window_col * cells - reach, window_col * cells + cells + reach):
            if not (0 <= row < rows and 0 <= col < cols):
                keys.append(None)
                continue
            patch = names[
                top + row * side : top + (row + 1) * side,
                left + col * side : left + (col + 1) * side,
            ]
            empty = not any(real(name) for name in patch.flat)
            hidden = border == 'mask' and empty
            keys.append(None if hidden else (('cell', level, row, col), 0))
    return keys


def attention(query, key, value, bias, windows, rows, scale):
    """Softmax attention query by query, key by key.

    Args:
        query, key, value: float64 arrays ``(B, L, nH, D)``.
        bias: float64 ``(nH, queries per window, N)``.
        windows: of :func:`keys_of_windows`.
        rows: dict from a name to its row on the token axis.

    Returns:
        dict from (image, name of a query, head) to its output vector.
    """
    outputs = {}
    for image in range(query.shape[0]):
        for queries, keys in windows:
            for i, (name, region) in enumerate(queries):
                seen = [
                    (j, rows[entry[0]])
                    for j, entry in enumerate(keys)
                    if entry is not None and entry[1] in (0, region)
                ]
                for head in range(query.shape[2]):
                    q = query[image, rows[name], head]
                    scores = [
                        scale * float(q @ key[image, row, head]) + bias[head, i, j]
                        for j, row in seen
                    ]
                    total = np.zeros(query.shape[3])
                    if scores:
                        weights = np.exp(np.array(scores) - max(scores))
                        for (_, row), weight in zip(seen, weights / weights.sum(), strict=True):
                            total += weight * value[image, row, head]
                    outputs[image, name, head] = total
    return outputs

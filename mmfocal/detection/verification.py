"""What RepPointsV2 verifies: where corners of objects are, and which cells lie inside of objects.

Chen et al., "RepPoints V2: Verification Meets Regression", arXiv 2007.08508, section 3.2. Points
are positions ``(x, y)`` in pixels of the padded image, flattened level after level, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import CornerPool
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

FOREGROUND_STRIDE = 8  # pixels per cell of the map that foreground is painted on


class CornerPooling(BaseModule):
    """Features of one corner: what lies along the two sides of a box that meet in it.

    Corner pooling of Law and Deng, "CornerNet", arXiv 1808.01244, section 3.3, narrowed: two maps
    are pooled in one direction each, added, and joined with a projection of the input.

    Args:
        channels: of input and output.
        pooled_channels: of the two maps that are pooled.
        directions: the two directions of :class:`mmcv.ops.CornerPool`.
        norm_cfg: normalisation after each convolution.
    """

    def __init__(
        self,
        channels: int,
        pooled_channels: int,
        directions: tuple[str, str],
        norm_cfg: dict,
    ) -> None:
        super().__init__()

        def conv(width_in: int, width_out: int, kernel: int, act_cfg: dict | None) -> ConvModule:
            settings = dict(padding=kernel // 2, norm_cfg=norm_cfg, act_cfg=act_cfg)
            return ConvModule(width_in, width_out, kernel, **settings)

        relu = dict(type='ReLU')
        self.before = nn.ModuleList(conv(channels, pooled_channels, 3, relu) for _ in directions)
        self.pools = nn.ModuleList(CornerPool(direction) for direction in directions)
        self.after = conv(pooled_channels, channels, 3, None)
        self.shortcut = conv(channels, channels, 1, None)
        self.out = conv(channels, channels, 1, relu)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to a map of the same shape."""
        pooled = sum(pool(before(x)) for before, pool in zip(self.before, self.pools, strict=True))
        return self.out(F.relu(self.after(pooled) + self.shortcut(x)))


def corner_radius(sizes: Tensor, min_iou: float = 0.7) -> Tensor:
    """How far both corners of a box may be off until its IoU with the true one is ``min_iou``.

    The smallest of three cases: both corners inside, both outside, and one of each. CornerNet,
    section 3.2; the same as ``mmdet.models.utils.gaussian_radius``, for all boxes at once.

    Args:
        sizes: ``(n, 2)`` float, widths and heights.
        min_iou: least intersection over union.

    Returns:
        ``(n,)`` radii in the unit of ``sizes``.
    """
    half_perimeter, area = sizes.sum(1), sizes.prod(1)

    def smaller_root(a: float, b: Tensor, c: Tensor) -> Tensor:
        """Of a r^2 - b r + c = 0."""
        return (b - (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)

    one_of_each = smaller_root(1, half_perimeter, area * (1 - min_iou) / (1 + min_iou))
    inside = smaller_root(4, 2 * half_perimeter, area * (1 - min_iou))
    linear = 2 * min_iou * half_perimeter
    outside = ((linear**2 + 16 * min_iou * (1 - min_iou) * area).sqrt() - linear) / (8 * min_iou)
    return torch.stack([one_of_each, inside, outside]).amin(0)


def corner_targets(
    points: Tensor,
    strides: Tensor,
    num_level_points: Sequence[int],
    corners: Tensor,
    radii: Tensor,
) -> tuple[Tensor, Tensor]:
    """Heat and offsets that one kind of corner of all objects of an image should give.

    On each level, the point nearest to a corner is to have the heat 1; those within the radius
    have less, by a Gaussian with a third of the radius as deviation. A point that is the nearest
    to several corners, or near several, belongs to the nearest of them.

    Args:
        points: ``(P, 2)`` float, x and y in pixels.
        strides: ``(P,)`` float, pixels.
        num_level_points: points of each level; they add up to ``P``.
        corners: ``(n, 2)`` float, x and y in pixels.
        radii: ``(n,)`` float, pixels.

    Returns:
        The heat, ``(P,)`` float from 0 to 1; and offsets, ``(P, 2)`` float, from the point to its
        corner in strides where the heat is 1, and 0 elsewhere.
    """
    heat, offsets = points.new_zeros(len(points)), torch.zeros_like(points)
    if not len(corners):
        return heat, offsets
    sigmas = (2 * radii + 1) / 6
    start = 0
    for count in num_level_points:
        level = slice(start, start + count)
        start += count
        if count == 0:
            continue
        exact = 'donot_use_mm_for_euclid_dist'
        distances = torch.cdist(points[level], corners, compute_mode=exact)
        gaussians = torch.exp(-(distances**2) / (2 * sigmas**2)) * (distances < radii)
        heat[level] = gaussians.amax(1)

        nearest_point = distances.argmin(0)
        claims = torch.full_like(distances, torch.inf)
        each = torch.arange(len(corners), device=corners.device)
        claims[nearest_point, each] = distances[nearest_point, each]
        distance, corner = claims.min(1)
        positive = distance.isfinite()
        heat[level][positive] = 1
        to_corner = corners[corner[positive]] - points[level][positive]
        offsets[level][positive] = to_corner / strides[level][positive, None]
    return heat, offsets


def foreground_shape(image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the map of foreground for an image of a height and width in pixels."""
    height, width = image_size
    return -(-height // FOREGROUND_STRIDE), -(-width // FOREGROUND_STRIDE)


def foreground_weights(
    boxes: Tensor, labels: Tensor, num_classes: int, image_size: tuple[int, int]
) -> Tensor:
    """Map of what objects cover, each cell with one over the area of its object.

    Boxes are painted from the largest to the smallest, so that of several over a cell the smallest
    counts.

    Args:
        boxes: ``(n, 4)`` float, x1, y1, x2, y2 in pixels.
        labels: ``(n,)`` int.
        num_classes: channels of the map.
        image_size: height and width of the padded image, in pixels.

    Returns:
        ``(num_classes, ceil(height / 8), ceil(width / 8))`` float; 0 where there is no object.
    """
    weights = boxes.new_zeros(num_classes, *foreground_shape(image_size))
    # A box without area covers the cell that it lies in.
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3).prod(1)
    order = areas.argsort(descending=True, stable=True)
    cells = (boxes[order] / FOREGROUND_STRIDE).long().clamp(min=0).tolist()
    painted = zip(cells, labels[order].tolist(), (1 / areas[order]).unbind(), strict=True)
    for (left, top, right, bottom), label, weight in painted:
        weights[label, top : bottom + 1, left : right + 1] = weight
    return weights


def refine_corners(corners: Tensor, heat: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """Moves corners to where the hottest of the four cells around them says that one is.

    Section 3.4 of the paper, without its fusion of scores: the heat chooses, and is left out of
    the score of the box.

    Args:
        corners: ``(n, 2)`` float, x and y in pixels.
        heat: ``(H, W)`` logits or probabilities of this kind of corner.
        offsets: ``(2, H, W)`` from the point of each cell to its corner, x and y in strides.
        stride: pixels per cell.

    Returns:
        ``(n, 2)`` float, x and y in pixels.
    """
    height, width = heat.shape
    column, row = (corners / stride).floor().long().unbind(1)
    # Cells of a square of two by two, as far as the map goes; a map may have a single row.
    columns = column.clamp(0, max(width - 2, 0))[:, None] + column.new_tensor([0, 1, 0, 1])
    rows = row.clamp(0, max(height - 2, 0))[:, None] + row.new_tensor([0, 0, 1, 1])
    columns, rows = columns.clamp(max=width - 1), rows.clamp(max=height - 1)
    hottest = heat[rows, columns].argmax(1, keepdim=True)
    column, row = columns.gather(1, hottest)[:, 0], rows.gather(1, hottest)[:, 0]
    return (torch.stack([column, row], 1) + offsets[:, row, column].T) * stride

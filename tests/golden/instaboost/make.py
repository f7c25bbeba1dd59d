"""What the authors' InstaBoost makes of a drawn image, for several seeds.

    python make.py cases.npz

needs instaboostfast 0.1.2, and a NumPy before 1.24, from which on it fails at objects in several
parts. See tests/golden/README.md.
"""

import json
import random
import sys

import cv2
import instaboostfast
import numpy as np
import pycocotools.mask as coco_mask

HEIGHT, WIDTH = 96, 144
ACTIONS = ('normal', 'horizontal', 'vertical', 'skip')
CASES = [
    *[(seed, (1, 0, 0, 0)) for seed in range(4)],
    *[(seed, (0.25, 0.25, 0.25, 0.25)) for seed in (4, 5)],
]


def box(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def image():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    drawn = np.dstack(
        [x * 255 // WIDTH, y * 255 // HEIGHT, 128 + 60 * np.sin(x / 9) * np.cos(y / 7)]
    )
    drawn = np.ascontiguousarray(drawn.astype(np.uint8))
    cv2.circle(drawn, (36, 40), 16, (30, 200, 240), -1)
    cv2.rectangle(drawn, (44, 44), (72, 60), (220, 60, 40), -1)
    cv2.rectangle(drawn, (120, 4), (143, 40), (10, 10, 10), -1)
    cv2.rectangle(drawn, (92, 62), (104, 86), (90, 240, 90), -1)
    cv2.rectangle(drawn, (112, 66), (122, 80), (90, 240, 90), -1)
    return drawn


def annotations():
    """Two that overlap, one at the border, one in two parts, one of run lengths."""
    angles = np.arange(0, 2 * np.pi, 0.2)
    circle = np.stack([36 + 16 * np.cos(angles), 40 + 16 * np.sin(angles)], 1).ravel().tolist()
    polygons = [[circle], [box(44, 44, 28, 16)], [box(120, 4, 24, 36)]]
    polygons.append([box(92, 62, 12, 24), box(112, 66, 10, 14)])
    found = []
    for segmentation in polygons:
        mask = coco_mask.merge(coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
        found.append(dict(segmentation=segmentation, bbox=coco_mask.toBbox(mask).tolist()))
    counts = [HEIGHT * 10 + 70] + [12, HEIGHT - 12] * 14
    counts[-1] += HEIGHT * WIDTH - sum(counts)
    segmentation = dict(counts=counts, size=[HEIGHT, WIDTH])
    found.append(dict(segmentation=segmentation, bbox=[10.0, 70.0, 14.0, 12.0]))
    return [dict(each, category_id=i) for i, each in enumerate(found)]


if __name__ == '__main__':
    entries = {
        'image': image(),
        'annotations': json.dumps(annotations()),
        'cases': json.dumps(CASES),
    }
    for seed, shares in CASES:
        config = instaboostfast.InstaBoostConfig(ACTIONS, shares)
        random.seed(seed)
        np.random.seed(seed)
        np.random.choice([0, 1], p=[0, 1])  # MMDetection draws whether an image is changed
        found, changed = instaboostfast.get_new_data(annotations(), image(), config)
        masks = np.zeros((5, HEIGHT, WIDTH), bool)
        boxes = np.zeros((5, 4))
        for each in found:
            rle = coco_mask.frPyObjects(each['segmentation'], HEIGHT, WIDTH)
            rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
            masks[each['category_id']] = coco_mask.decode(rle)
            boxes[each['category_id']] = each['bbox']
        entries |= {
            f'image.{seed}': changed,
            f'masks.{seed}': np.packbits(masks),
            f'boxes.{seed}': boxes,
        }
    np.savez_compressed(sys.argv[1], **entries)

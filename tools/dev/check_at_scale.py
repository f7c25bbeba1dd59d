"""Times the check of annotations of COCO's size.

Writes a file like instances_train2017.json (118,000 images, 826,000 polygons, 450 MB) with empty
files for images, looks through it in a fresh process as ``mmfocal train`` does, and prints seconds
and the most memory that the process held. The headers of images are left out: empty files have
none, and how long they take is a matter of the disk.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

IMAGES, BOXES_PER_IMAGE, CATEGORIES = 118_000, 7, 80
SIZE = 640, 480  # pixels
MEAN_POINTS = 25  # of a polygon, with which the file is as large as COCO's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=IMAGES)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='where the data is written, or is already')
    parser.add_argument('--check', action='store_true', help='only look through FOLDER')
    args = parser.parse_args()
    if args.check:
        check(args.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / 'train.json').exists():
            write(folder, args.images, random.Random(args.seed))
        subprocess.run([sys.executable, __file__, '--check', '--folder', folder], check=True)


def write(folder: Path, num_images: int, rng: random.Random) -> None:
    """Annotations in COCO's order, where the categories come last, and files to be listed."""
    (folder / 'train').mkdir(parents=True)
    width, height = SIZE
    with open(folder / 'train.json', 'w') as file:
        file.write('{"info": {}, "licenses": [], "images": ')
        images = (
            dict(
                license=1,
                file_name=f'{i:012}.jpg',
                coco_url=f'http://images.cocodataset.org/train2017/{i:012}.jpg',
                height=height,
                width=width,
                date_captured='2013-11-14 11:18:45',
                id=i,
            )
            for i in range(1, num_images + 1)
        )
        _write_list(file, images)
        file.write(', "annotations": ')
        _write_list(file, chain.from_iterable(_objects(i, rng) for i in range(1, num_images + 1)))
        names = [dict(supercategory='thing', id=i, name=f'class {i}') for i in range(CATEGORIES)]
        file.write(f', "categories": {json.dumps(names)}}}')
    for i in range(1, num_images + 1):
        (folder / 'train' / f'{i:012}.jpg').touch()


def _write_list(file, items: Iterator[dict]) -> None:
    for number, item in enumerate(items):
        file.write(f'{", " if number else "["}{json.dumps(item)}')
    file.write(']')


def _objects(image: int, rng: random.Random) -> Iterator[dict]:
    """Annotations of an image: stars around a point, of as many corners as in COCO."""
    width, height = SIZE
    for number in range(BOXES_PER_IMAGE):
        x, y = rng.uniform(0, width - 101), rng.uniform(0, height - 101)
        corners = max(3, int(rng.expovariate(1 / MEAN_POINTS)))
        polygon = [
            round(start + rng.uniform(0, 100), 2) for _ in range(corners) for start in (x, y)
        ]
        yield dict(
            segmentation=[polygon],
            area=round(rng.uniform(100, 10_000), 4),
            iscrowd=0,
            image_id=image,
            bbox=[round(x, 2), round(y, 2), 100.0, 100.0],
            category_id=rng.randrange(CATEGORIES),
            id=image * 100 + number,
        )


def check(folder: Path) -> None:
    """Looks through the data, and prints what that took."""
    from mmfocal.datasets.checks import CocoData, Report, check_coco, images

    images.MAX_HEADERS = 0
    before, start, work = _most_memory(), time.perf_counter(), time.process_time()
    data = CocoData(
        annotations=str(folder / 'train.json'), images=str(folder / 'train'), has_masks=True
    )
    report = Report()
    counts = check_coco(data, report)
    seconds, work = time.perf_counter() - start, time.process_time() - work
    size = (folder / 'train.json').stat().st_size
    print(
        f'{size / 1e6:,.0f} MB, {counts.images:,} images and {counts.boxes:,} polygons: '
        f'{seconds:.1f} s ({work:.1f} s of CPU), at most {_most_memory():.2f} GB of memory '
        f'({before:.2f} GB before), {report.count("error"):,} errors, {report.count("note")} notes'
    )


def _most_memory() -> float:
    """Gigabytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == '__main__':
    main()

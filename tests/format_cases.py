"""Data sets of other formats, written from a mapping of names to contents, whole or damaged."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest
from exported import truth
from PIL import Image

from mmfocal.datasets.checks import Report
from mmfocal.datasets.formats.content import Annotated, Folder
from mmfocal.utils.errors import UserError

Files = dict[str, str | bytes | tuple[int, int]]


def written(root: Path, files: Files) -> Path:
    """A folder of texts, bytes, and images of the given widths and heights."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new('RGB', content).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read_data(module: ModuleType, root: Path) -> tuple[Annotated, list[str]]:
    """A data set as a format reads it, and what is noted; every image lies in its folder."""
    report = Report()
    annotated = module.read(Folder(root), report)
    samples = [sample for samples in annotated.splits.values() for sample in samples]
    assert all(sample.image.is_file() and root in sample.image.parents for sample in samples)
    assert {each.label for sample in samples for each in sample.objects} <= {*annotated.classes}
    assert not report.count('error')
    return annotated, report.lines('note')


def found(annotated: Annotated) -> dict[str, dict[str, list[tuple]]]:
    """Objects as label, x, y, width and height, by split and name of the image."""
    return {
        split: {
            sample.image.name: [(each.label, *each.box) for each in sample.objects]
            for sample in samples
        }
        for split, samples in annotated.splits.items()
    }


def assert_equal_truth(annotated: Annotated, tolerance: float) -> None:
    """Boxes are those that the exports of ``tests/exports/boxes`` were made from."""
    for split in ('train', 'val'):
        content = truth('boxes', split)
        names = {each['id']: each['name'] for each in content['categories']}
        images = {each['id']: Path(each['file_name']).stem for each in content['images']}
        expected = {stem: [] for stem in images.values()}
        for each in content['annotations']:
            expected[images[each['image_id']]].append((names[each['category_id']], *each['bbox']))
        # Roboflow's names go on after that of the image.
        got = {name[: len(split) + 2]: each for name, each in found(annotated)[split].items()}
        assert got.keys() == expected.keys()
        for stem, objects in expected.items():
            assert sorted(label for label, *_ in got[stem]) == sorted(each[0] for each in objects)
            for label, *box in objects:
                assert any(
                    label == other and box == pytest.approx(values, abs=tolerance)
                    for other, *values in got[stem]
                ), (stem, label, box)


def read_damaged(module: ModuleType, root: Path, files: Files, seed: int) -> None:
    """Reads a data set of which one text is cut off, or has other bytes somewhere.

    Anything but success or a UserError of one line comes out.
    """
    rng = random.Random(seed)
    name = rng.choice([name for name, each in files.items() if not isinstance(each, tuple)])
    content = bytearray(files[name].encode() if isinstance(files[name], str) else files[name])
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    else:
        for _ in range(rng.choice((1, 1, 3))):
            content[rng.randrange(len(content))] = rng.choice(
                (0, 10, 44, 48, 255, rng.randrange(256))
            )
    folder = Folder(written(root, {**files, name: bytes(content)}))
    module.recognise(folder)
    try:
        module.read(folder, Report())
    except UserError as error:
        assert '\n' not in str(error), error

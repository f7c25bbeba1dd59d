"""Write one data set in many formats, each by the tool that the format belongs to.

The readers of ``mmfocal new_config`` are proved with these folders: the same data in each format
has to give the same COCO JSON or the same label maps. The tools need an environment of their own,
Python 3.11 with ``tools/dev/exports/requirements.txt`` (mmfocal is not needed)::

    python -m venv .venv-exports
    .venv-exports/bin/pip install -r tools/dev/exports/requirements.txt
    PYTHONPATH=tools/dev .venv-exports/bin/python -m exports boxes BCCD OUT
    PYTHONPATH=tools/dev .venv-exports/bin/python -m exports polygons TINY_COCO OUT
    PYTHONPATH=tools/dev .venv-exports/bin/python -m exports maps CAMVID OUT --images 30
    PYTHONPATH=tools/dev .venv-exports/bin/python -m exports fixtures SHAPES tests/exports

``BCCD`` is a folder in Pascal VOC (Annotations, ImageSets/Main, JPEGImages), ``TINY_COCO`` one
with annotations/instances_*.json and image folders named like the splits, ``CAMVID`` one with
img_dir and ann_dir (255 is ignored). ``OUT/truth`` gets what all exports are made from,
``OUT/<form>`` one export each, ``OUT/INDEX.md`` a line for each. ``fixtures`` makes the small
ones of the tests out of a few images of the embedded data set, see tests/exports/README.md.

The forms of ultralytics, which needs torch, are written where it is installed too; the tests'
were made with 8.4.190. Roboflow is a web service: its layouts are imitated here, and marked so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import base, detection, fixtures, segmentation  # noqa: F401, the forms enter themselves

os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')  # labelme imports Qt

CAMVID = 'sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,cyclist'


def write_all(kind: str, out: Path, only: list[str]) -> int:
    """Write each form of ``out/truth``, list it, and return how many tools failed."""
    failed, lines = 0, ['| form | written by |', '|---|---|']
    for name, (tool, write) in base.FORMS[kind].items():
        if only and name not in only:
            continue
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        try:
            write(out / 'truth', out / name)
            lines.append(f'| {name} | {version_of(tool)} |')
        except ImportError as error:
            shutil.rmtree(out / name)
            print(f'{name}: left out, {error}', file=sys.stderr)
        except Exception as error:  # a tool that fails is a finding, the others go on
            failed += 1
            print(f'{name}: {type(error).__name__}: {error}', file=sys.stderr)
    if not only:
        (out / 'INDEX.md').write_text('\n'.join(lines) + '\n')
    return failed


def version_of(tool: str) -> str:
    if tool.startswith('imitated'):
        return tool
    return f'{tool} {importlib.metadata.version(tool)}'


def write_fixtures(shapes: Path, out: Path) -> int:
    """The forms of all three kinds, their images left out and listed in images.json."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fixtures.draw_truth(shapes, work)
        for kind in base.KINDS:
            failed += write_all(kind, work / kind, [])
        fixtures.keep(work, out)
    return failed


def make_truth(args: argparse.Namespace) -> None:
    truth = args.out / 'truth'
    shutil.rmtree(truth, ignore_errors=True)
    truth.mkdir(parents=True)
    if args.kind == 'boxes':
        base.truth_of_voc(args.source, truth)
    elif args.kind == 'polygons':
        base.truth_of_coco(args.source, truth)
    else:
        base.truth_of_maps(args.source, truth, args.images, args.classes.split(','))


def quiet() -> None:
    """Leave out the tools' own remarks, thousands of lines."""
    from loguru import logger  # labelme's

    logger.remove()
    logging.disable(logging.WARNING)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('kind', choices=[*base.KINDS, 'fixtures'])
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--images', type=int, help='images of each split (label maps)')
    parser.add_argument('--classes', default=CAMVID, help='names for label maps, with commas')
    parser.add_argument('--only', nargs='+', default=[], help='names of forms')
    args = parser.parse_args(argv)
    quiet()
    if args.kind == 'fixtures':
        return write_fixtures(args.source, args.out)
    make_truth(args)
    return write_all(args.kind, args.out, args.only)


if __name__ == '__main__':
    sys.exit(main())

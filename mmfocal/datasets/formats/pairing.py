"""Finds images and their label maps in a folder: which belong together, and to which split."""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mmfocal.utils.errors import UserError

from ..checks import Report
from .content import SPLIT_WORDS, SPLITS, WHOLE, Folder, read_text, split_of

# Words in names of folders of images.
IMAGE_WORD = re.compile('images?|imgs?|jpegimages|leftimg8bit|rgb|photos?|pictures?|sat')
# Words in names of folders of label maps, or of label maps beside their images.
MAP_WORD = re.compile(
    'anns?|gts?|gtfine|gtcoarse|truth|l|lbls?|segs?|segm|semantic|stuffthingmaps|targets?|trimaps?'
    '|(label|mask|annot|segmentation|groundtruth).*|.*(annots?|masks?|labels)'
)
# In names of folders with pictures of instances, or only for people to look at.
OTHER_WORD = re.compile('segmentationobject.*|panoptic|instances?|.*visualization|overlays?')
NEUTRAL_WORD = re.compile('dir|folder|data|dataset')
# Endings of names, of several maps for each image, that are not taken, and the one that is.
OTHER_ENDINGS = ('color', 'colour', 'instanceids', 'instancetrainids', 'vis', 'overlay')
BEST_ENDING = 'labeltrainids'
NUM_EXAMPLES = 8  # neighbouring label maps from which the rule of names is taken, twice
NUM_RULES = 10  # that are tried on all
NUM_NEAR = 10  # names that are looked at on both sides


class Pair(NamedTuple):
    """An image, and its label map."""

    image: Path
    label_map: Path


class Rule(NamedTuple):
    """What stands around the part of a name that an image and its label map have in common."""

    before_image: str = ''
    after_image: str = ''
    before_map: str = ''
    after_map: str = ''

    def image_of(self, stem: str) -> str | None:
        """The stem of the image that a label map of this stem belongs to."""
        end = len(stem) - len(self.after_map)
        if end <= len(self.before_map) or not stem.endswith(self.after_map):
            return None
        if not stem.startswith(self.before_map):
            return None
        return self.before_image + stem[len(self.before_map) : end] + self.after_image

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """What makes one better than another that fits as many."""
        ending = self.after_map.lower()
        is_other = ending.endswith(OTHER_ENDINGS)
        return not is_other, ending.endswith(BEST_ENDING), -sum(map(len, self))


class Pairing(NamedTuple):
    """Images and label maps of a folder.

    Attributes:
        pairs: in the order of the images.
        images: that have no label map.
        label_maps: that have no image, or another one of it is taken.
        rule: how the names of both differ.
    """

    pairs: list[Pair]
    images: list[Path]
    label_maps: list[Path]
    rule: Rule


def pair(folder: Folder) -> Pairing | None:
    """Finds label maps, by the names of folders or files, and the image of each.

    Args:
        folder: to look through.

    Returns:
        None if there are none.

    Raises:
        UserError: several images fit one label map.
    """
    folders = _Folders(folder)
    images, label_maps = _separated(folders, folder.images)
    if not images or not label_maps:
        return None
    best: tuple[int, dict[Path, Path], Rule] = (0, {}, Rule())
    # Folders of both are alike but for words such as images and masks, or only the splits' are.
    for scope in (_scope, lambda name: split_of(name) or '', lambda name: ''):
        found, rule = _matched(folders, images, label_maps, scope)
        if len(found) > best[0]:
            best = len(found), found, rule
        if len(found) == len(label_maps):
            break
    _, found, rule = best
    if not found:
        return None
    taken = set(found.values())
    return Pairing(
        [Pair(image, found[image]) for image in images if image in found],
        [image for image in images if image not in found],
        [path for path in label_maps if path not in taken],
        rule,
    )


# --- Roles of files ---------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    return re.findall('[a-z0-9]+', name.lower())


def _any(pattern: re.Pattern, words: Iterable[str]) -> bool:
    return any(map(pattern.fullmatch, words))


class _Folders(dict):
    """Folders of files, relative to the root, by their paths."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def __missing__(self, path: str) -> str:
        self[path] = self.folder.relative(Path(path))
        return self[path]

    def of(self, path: Path) -> str:
        return self[os.path.dirname(path)]


def _separated(folders: _Folders, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and label maps."""
    by_role: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_role[_role(folders.of(path))].append(path)
    images, label_maps = by_role['images'], by_role['maps']
    if images and label_maps:
        return images, label_maps
    both = images or label_maps
    marked = {path for path in both if _is_marked(path.stem)}
    if not marked:  # such as 1.jpg and 1.png
        stems = {path.with_suffix('') for path in both if path.suffix.lower() != '.png'}
        marked = {
            path
            for path in both
            if path.suffix.lower() == '.png' and path.with_suffix('') in stems
        }
    return [path for path in both if path not in marked], [p for p in both if p in marked]


def _is_marked(stem: str) -> bool:
    """Whether a name begins or ends with a word for label maps, and more than that."""
    words = _words(stem)
    return len(words) > 1 and _any(MAP_WORD, (words[0], words[-1]))


@lru_cache(maxsize=10_000)
def _role(name: str) -> str:
    """What the last part of a folder's path that says anything says of its files."""
    for part in reversed(PurePosixPath(name).parts):
        words = _words(part)
        if _any(OTHER_WORD, words):
            return 'other'
        if _any(MAP_WORD, words):
            return 'maps'
        if _any(IMAGE_WORD, words):
            return 'images'
    return 'images'


@lru_cache(maxsize=10_000)
def _scope(name: str) -> str:
    """A folder's path without words for images and label maps."""
    parts = (' '.join(_left_of(_words(part))) for part in PurePosixPath(name).parts)
    return '/'.join(part for part in parts if part)


def _left_of(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if IMAGE_WORD.fullmatch(word) or NEUTRAL_WORD.fullmatch(word):
            continue
        if not MAP_WORD.fullmatch(word):
            yield word
        elif split := split_of(word.rstrip('s').removesuffix('annot').removesuffix('mask')):
            yield SPLIT_WORDS[split][0]


# --- Names ------------------------------------------------------------------------------------


def _matched(
    folders: _Folders,
    images: Sequence[Path],
    label_maps: Sequence[Path],
    scope: Callable[[str], str],
) -> tuple[dict[Path, Path], Rule]:
    """Label maps by image, and the rule of names that fits most."""
    stems: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in images:
        stems[scope(folders.of(path))][path.stem].append(path)
    keys = [(scope(folders.of(path)), path.stem) for path in label_maps]
    best: tuple[int, tuple, Rule] | None = None
    for rule in _rules(stems, keys):
        count = sum(rule.image_of(stem) in stems.get(where, ()) for where, stem in keys)
        if count and (best is None or (count, rule.rank) > best[:2]):
            best = count, rule.rank, rule
        if count == len(keys) and rule == Rule():
            break
    if best is None:
        return {}, Rule()
    rule, found = best[2], {}
    for path, (where, stem) in zip(label_maps, keys, strict=True):
        candidates = stems.get(where, {}).get(rule.image_of(stem), [])
        if len(candidates) > 1:
            first, second, *_ = candidates
            raise UserError(
                f'{first} and {second} both fit the label map {path}; expected one image of this '
                'name. Take one of them out.'
            )
        for image in candidates:
            if image in found:
                raise UserError(
                    f'{path} and {found[image]} both fit the image {image}; expected one label '
                    'map of this name. Take one of them out.'
                )
            found[image] = path
    return found, rule


def _rules(stems: dict[str, dict], keys: Sequence[tuple[str, str]]) -> Iterator[Rule]:
    """Rules of names to try: none, then those that examples follow."""
    yield Rule()
    votes: Counter[Rule] = Counter()
    ordered = lru_cache(lambda where: _ordered(stems.get(where, {})))
    # Of several maps of an image, neighbours are of each kind.
    half = len(keys) // 2
    for where, stem in {*keys[:NUM_EXAMPLES], *keys[half : half + NUM_EXAMPLES]}:
        near = _near(stem, stems.get(where, {}), *ordered(where))
        votes.update({rule for image in near for rule in _between(image, stem)})
    yield from (rule for rule, _ in votes.most_common(NUM_RULES))


def _ordered(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names in order, and in order of their ends, each from behind."""
    return sorted(names), sorted(name[::-1] for name in names)


def _near(stem: str, names: Container[str], begins: list[str], ends: list[str]) -> set[str]:
    """Names that begin or end most like another, and those that are a part of it."""
    parts = (stem[i:j] for i in range(len(stem)) for j in range(i + 1, len(stem) + 1))
    found = {part for part in parts if part in names}
    place = bisect(begins, stem)
    found.update(begins[max(place - NUM_NEAR, 0) : place + NUM_NEAR])
    place = bisect(ends, stem[::-1])
    found.update(name[::-1] for name in ends[max(place - NUM_NEAR, 0) : place + NUM_NEAR])
    return found


def _between(image: str, label_map: str) -> Iterator[Rule]:
    """Rules by which a name of a label map would follow from one of an image."""
    if same := _common(image, label_map):
        yield Rule('', image[same:], '', label_map[same:])
    if same := _common(image[::-1], label_map[::-1]):
        yield Rule(image[:-same], '', label_map[:-same], '')
    if image and image in label_map:
        before, _, after = label_map.partition(image)
        yield Rule('', '', before, after)


def _common(one: str, other: str) -> int:
    """How many characters two names begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


# --- Splits -----------------------------------------------------------------------------------


def by_split(folder: Folder, pairs: Sequence[Pair], report: Report) -> dict[str, list[Pair]]:
    """Pairs by ``'train'``, ``'val'``, ``'test'``, or ``'all'`` if they are not divided.

    Lists of VOC's ``ImageSets/Segmentation`` decide, else names of folders, else other lists that
    are called as a split. If some belong to a split, so must the others: they are for training if
    nothing else is, and left out with a note otherwise.
    """
    lists = _lists(folder)
    of_voc = next((each for where, each in lists.items() if where.name == 'Segmentation'), None)
    if of_voc:
        return _listed(folder, pairs, of_voc, report)
    splits: dict[str, list[Pair]] = defaultdict(list)
    folders = _Folders(folder)
    for each in pairs:
        split = split_of(folders.of(each.image)) or split_of(folders.of(each.label_map))
        splits[split or WHOLE].append(each)
    if list(splits) == [WHOLE]:
        for each in lists.values():
            if (found := _listed(folder, pairs, each, Report())) and list(found) != [WHOLE]:
                return _listed(folder, pairs, each, report)
        return dict(splits)
    rest = splits.pop(WHOLE, [])
    if rest and 'train' not in splits:
        splits['train'] = rest
        rest = []
    for each in rest:
        problem = 'belongs to none of {splits}, as others do; it is left out.'
        report.note(str(each.image), problem, splits=', '.join(splits))
    return {split: splits[split] for split in SPLITS if split in splits}


def _lists(folder: Folder) -> dict[Path, dict[str, Path]]:
    """Text files that are called as a split, by folder and split."""
    found: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in folder.with_suffix('.txt'):
        stem = path.stem.lower()
        split = next((split for split in SPLITS if stem in SPLIT_WORDS[split]), None)
        if split is None and stem in ('default', 'trainval', 'all'):
            split = WHOLE
        if split is not None:
            found[path.parent].setdefault(split, path)
    for files in found.values():
        if len(files) > 1 and (files.keys() & {'train', 'val'}):
            files.pop(WHOLE, None)  # both of them, once more
    return dict(sorted(found.items(), key=lambda item: len(item[0].parts)))


def _listed(
    folder: Folder, pairs: Sequence[Pair], lists: dict[str, Path], report: Report
) -> dict[str, list[Pair]]:
    known: dict[str, Pair | None] = {}
    for each in pairs:
        parts = PurePosixPath(folder.relative(each.image)).with_suffix('').parts
        for start in range(len(parts)):
            tail = '/'.join(parts[start:])
            known[tail] = None if tail in known else each
    splits: dict[str, list[Pair]] = defaultdict(list)
    seen: dict[Path, Path] = {}
    for split in (*SPLITS, WHOLE):
        if split not in lists:
            continue
        for number, line in enumerate(read_text(lists[split]).splitlines(), 1):
            if not line.strip():
                continue
            where, name = f'{lists[split]}: line {number}', line.strip()
            found = _named(name, known) or _named(name.split()[0], known)
            if found is None:
                problem = 'names {name}, which is no image with a label map; it is left out.'
                report.note(where, problem, name=repr(name))
            elif found.image in seen:
                problem = 'names {name}, which {other} names, too; it stays in that alone.'
                report.note(where, problem, name=repr(name), other=seen[found.image])
            else:
                seen[found.image] = lists[split]
                splits[split].append(found)
    for each in pairs if splits else ():
        if each.image not in seen:
            report.note(str(each.image), 'is in no list of images; it is left out.')
    return dict(splits)


def _named(name: str, known: dict[str, Pair | None]) -> Pair | None:
    """The pair of a name in a list, with or without a suffix and folders."""
    path = PurePosixPath(name.replace('\\', '/'))
    parts = [part for part in path.parts if part not in ('/', '.')]
    for start in range(len(parts)):
        tail = '/'.join(parts[start:])
        if found := known.get(tail) or known.get(str(PurePosixPath(tail).with_suffix(''))):
            return found
    return None

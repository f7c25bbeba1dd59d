"""Names in any script, drawn by matplotlib: the fonts that have their characters, or escapes."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontEntry, FontProperties, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from mmengine.logging import print_log
from mmengine.visualization import Visualizer

COLOUR_GLYPHS = 1 << 14  # FreeType's flag of a face; matplotlib draws outlines alone
JOINERS = '\u200c\u200d'  # have no outlines, and shape those beside them
VARIANTS = range(0xFE00, 0xFE10)  # choose between outlines, if a font has several

_told: set[str] = set()


def drawable(texts: Sequence[str], base: str = 'sans-serif') -> tuple[list[str], list[str]]:
    """Texts as matplotlib can draw them, and with which fonts.

    What no font of the machine has, and control characters but for the ends of lines, become
    escapes such as ``\\u7ea2``; the former is told once in the log.

    Args:
        texts: to be drawn.
        base: family of fonts that is asked first.

    Returns:
        The texts, and families of fonts in the order in which they are asked for a character.
    """
    characters = {c for c in ''.join(texts) if c.isprintable() and ord(c) not in VARIANTS}
    missing = characters - _characters_of(fontManager.findfont(FontProperties(family=[base])))
    families = [base]
    if missing:
        found, missing = _families_for(frozenset(missing))
        families += found
    if missing:
        _tell(missing)
    return [''.join(_shown(c, missing) for c in text) for text in texts], families


def _shown(character: str, missing: Collection[str]) -> str:
    """A character, or what is drawn in its place."""
    if unicodedata.category(character) == 'Zs':  # spaces of all widths
        return ' '
    if ord(character) in VARIANTS:
        return ''
    if character in missing or not (character.isprintable() or character in f'\n{JOINERS}'):
        return character.encode('unicode_escape').decode()
    return character


@cache
def _families_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have the characters, few of them, and the characters that none has."""
    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):  # new ones: matplotlib keeps a list
        try:
            fontManager.addfont(path)
        except Exception:  # FreeType, and what reads names, raise anything for broken fonts
            continue
    left, families = set(characters), []
    entries = sorted(fontManager.ttflist, key=_order)
    while left:
        entry = max(entries, key=lambda each: len(left & _characters(each)))
        if not (has := left & _characters(entry)):
            break
        families.append(entry.name)
        left -= has
    return tuple(families), frozenset(left)


def _order(entry: FontEntry) -> tuple:
    """Upright fonts of normal weight first, as matplotlib will choose in a family."""
    return entry.style != 'normal', str(entry.weight) not in ('400', 'normal'), entry.name


def _characters(entry: FontEntry) -> frozenset[str]:
    return _characters_of(entry.fname)


@cache
def _characters_of(path: str) -> frozenset[str]:
    """What a font has outlines for."""
    try:
        face = FT2Font(path)
        is_placeholder = 'lastresort' in face.family_name.replace(' ', '').lower()
        flags = getattr(face.face_flags, 'value', face.face_flags)
        if is_placeholder or not face.scalable or flags & COLOUR_GLYPHS:
            return frozenset()
        return frozenset(map(chr, face.get_charmap()))
    except Exception:  # FreeType raises anything for broken fonts
        return frozenset()


def _tell(missing: Collection[str]) -> None:
    """Tells once of each character."""
    characters = sorted(set(missing) - _told)
    if not characters:
        return
    _told.update(characters)
    first = ', '.join(f'{c} (U+{ord(c):04X})' for c in characters[:5])
    more = f' and {len(characters) - 5} others' if len(characters) > 5 else ''
    print_log(
        f'No font of this machine has {first}{more}: names are drawn with escapes '
        'such as \\u7ea2 in their place. Install one that has them, such as Noto Sans (packages '
        'fonts-noto-cjk for Chinese, Japanese and Korean, fonts-noto-core for other scripts, '
        'fonts-symbola for emoji; or a .ttf or .otf file in ~/.local/share/fonts).',
        'current',
        logging.WARNING,
    )


def install_fonts() -> None:
    """Lets all visualizers of mmengine, mmdet and mmpretrain write :func:`drawable` texts.

    mmseg's writes with OpenCV, see :mod:`mmfocal.visualization.label_maps`. May be called again.
    """
    plain = Visualizer._initialize_fig
    if plain.__module__ == __name__:
        return

    def initialize_fig(self: Visualizer, settings: dict) -> tuple[Any, Any, Axes]:
        canvas, figure, axes = plain(self, settings)
        axes.text = partial(_write, axes.text)
        return canvas, figure, axes

    Visualizer._initialize_fig = initialize_fig


def _write(write: Callable[..., Text], x: float, y: float, text: str, **options: Any) -> Text:
    """``Axes.text`` for texts in any script."""
    if options.get('fontproperties') is None:
        [text], options['family'] = drawable([text], options.get('family') or 'sans-serif')
    return write(x, y, text, **options)

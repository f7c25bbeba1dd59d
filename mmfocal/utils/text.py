"""Text of others, such as names of files and classes, in what is printed."""

from __future__ import annotations


def printable(text: object) -> str:
    """A text in one line: control characters, and such as turn or hide others, are escaped.

    A name from a file could otherwise move the cursor, change colours, or begin a line of its own
    that looks like one of ours.
    """
    text = str(text)
    return text if text.isprintable() else ''.join(map(_escaped, text))


def printable_lines(text: object) -> str:
    """Like :func:`printable`, for a text whose line feeds are its own."""
    return '\n'.join(map(printable, str(text).split('\n')))


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]

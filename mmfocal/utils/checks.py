"""Checks of arguments: each error names the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any


def require(
    holds: Any, name: str, expected: str, value: Any, error: type[Exception] = ValueError
) -> None:
    """Raises an error where something does not hold."""
    if not holds:
        kind = f' of type {type(value).__name__}' if error is TypeError else ''
        raise error(f'{name} must be {expected}, got {value!r}{kind}')


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises TypeError for what is no int, ValueError for one out of range."""
    require(is_int(value), name, 'an int', value, TypeError)
    bounds = f'at least {least}' if most is None else f'between {least} and {most}'
    require(value >= least and (most is None or value <= most), name, bounds, value)

"""Pages of HTML that need no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, filters: dict[str, Callable] | None = None, **values: Any) -> bytes:
    """A page from a template of Jinja's.

    Args:
        template: the file.
        filters: for it, by name.
        **values: for it. Text is escaped, since names of classes and files come from others.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    page = environment.get_template(template.name).render(**values)
    return page.encode(errors='backslashreplace')


def data_uri(data: bytes, kind: str) -> str:
    """A file in the page itself.

    Args:
        data: its content.
        kind: its media type, such as ``'image/png'``.
    """
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'

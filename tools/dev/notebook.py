"""Runs the notebook of the docs from its first cell to its last, and keeps what it shows.

    python -m tools.dev.notebook docs/quick_start.ipynb

The first code cell has nothing but parameters, in whose place tests put shorter ones. What bars
and warnings wrote to standard error is left out.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image


def executed(path: Path, folder: Path, parameters: str | None = None) -> nbformat.NotebookNode:
    """A notebook with what its cells show.

    Args:
        path: of the notebook, which is not changed.
        folder: in which the kernel works.
        parameters: source of the first code cell; None for its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises something.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    if parameters is not None:
        cells[0].source = parameters
    NotebookClient(
        notebook,
        timeout=3600,  # seconds a cell
        kernel_name='python3',
        resources={'metadata': {'path': str(folder)}},
        record_timing=False,
    ).execute()
    for cell in cells:
        cell.outputs = [each for each in cell.outputs if each.get('name') != 'stderr']
        for data in (each.data for each in cell.outputs if 'data' in each):
            if 'image/png' in data:
                data['image/png'] = small(data['image/png'])
    return notebook


def small(image: str) -> str:
    """A PNG, in base64, with at most 128 colours."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as found:
        found.convert('RGB').quantize(128).save(buffer, 'PNG', optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('notebook', type=Path)
    path = parser.parse_args().notebook
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(path, Path(folder))
    notebook.metadata = {'kernelspec': notebook.metadata.kernelspec}
    nbformat.write(notebook, path)
    print(f'Wrote {path}, {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    sys.exit(main())

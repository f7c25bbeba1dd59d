"""The command line: one module for each tool, ``mmfocal TOOL`` and ``tools/TOOL.py``."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from mmfocal.utils.compat import without_warnings_of_others
from mmfocal.utils.errors import user_errors_without_trace

TOOLS = {file.stem: file for file in sorted(Path(__file__).parent.glob('[!_]*.py'))}


def main() -> None:
    """Runs the tool that the first argument names, with the other arguments."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in TOOLS:
        sys.argv = [f'mmfocal {name}', *arguments]
        run(name)
    if name in ('-h', '--help'):
        with user_errors_without_trace():
            print(_usage(), flush=True)
        sys.exit()
    print(f'mmfocal: there is no tool {name!r}.\n\n{_usage()}', file=sys.stderr)
    sys.exit(2)


def run(tool: str) -> None:
    """Runs a tool with the arguments of the process, and ends the process with its status."""
    with without_warnings_of_others(), user_errors_without_trace():
        sys.exit(importlib.import_module(f'{__name__}.{tool}').main())


def _usage() -> str:
    """The tools with the first line of what each says of itself, without importing them."""
    lines = ['mmfocal TOOL ...; mmfocal TOOL --help says more.', '']
    for tool, file in TOOLS.items():
        purpose = ast.get_docstring(ast.parse(file.read_text())).partition('\n')[0]
        lines.append(f'  {tool:20} {purpose}')
    return '\n'.join(lines)

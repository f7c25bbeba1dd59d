"""Runs a tool from anywhere: ``mmfocal train CONFIG``, ``python -m mmfocal train CONFIG``.

The tools are those of the repository's folder ``tools/``, which a wheel carries along.
"""

from __future__ import annotations

import ast
import runpy
import sys

from mmfocal.engine.config import REPOSITORY


def main() -> None:
    """Runs the tool that the first argument names, with the other arguments."""
    tools = {file.stem: file for file in sorted((REPOSITORY / 'tools').glob('[!_]*.py'))}
    name, *arguments = sys.argv[1:] or ['--help']
    if name not in tools:
        asked = name in ('-h', '--help')
        out = sys.stdout if asked else sys.stderr
        if not asked:
            print(f'mmfocal: there is no tool {name!r}.\n', file=out)
        print('mmfocal TOOL ...; mmfocal TOOL --help says more.\n', file=out)
        for tool, file in tools.items():
            purpose = ast.get_docstring(ast.parse(file.read_text())).partition('\n')[0]
            print(f'  {tool:20} {purpose}', file=out)
        sys.exit(0 if asked else 2)
    sys.argv = [f'mmfocal {name}', *arguments]
    sys.path.insert(0, str(tools[name].parent))
    runpy.run_path(str(tools[name]), run_name='__main__')


if __name__ == '__main__':
    main()

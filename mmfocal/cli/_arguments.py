"""Arguments that several tools share."""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from math import inf
from typing import Any, TypeVar

from mmengine.config import DictAction

from mmfocal.weights.safe_loading import names_weights

Options = TypeVar('Options')


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and tells the nearest to one that there is not."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        args = [*(sys.argv[1:] if args is None else args)]
        if 'checkpoint' in [each.dest for each in self._actions]:
            args = self._with_checkpoint(args)
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [name for name in self._option_string_actions if name.startswith('--')]
            asked = next((each for each in unknown if each.startswith('-')), unknown[0])
            name = asked.partition('=')[0]
            longer = [each for each in names if each.startswith(name)]
            near = longer or difflib.get_close_matches(name, names)
            self.error(
                f'unrecognized arguments: {" ".join(unknown)}'
                + (f' (nearest to {name}: {", ".join(near)})' if near else '')
            )
        return found

    def _with_checkpoint(self, args: list[str]) -> list[str]:
        """Arguments with a file of weights in both places, if it is given for a config only."""
        places = self._places(args)
        if not places or not names_weights(args[places[0]]):
            return args
        following = args[places[1]] if len(places) > 1 else ''
        if following == 'none' or names_weights(following):
            return args
        return [*args[: places[0] + 1], args[places[0]], *args[places[0] + 1 :]]

    def _places(self, args: list[str]) -> list[int]:
        """Where arguments stand that are no options and no values of options."""
        places, waiting = [], 0.0  # values that an option may still take
        for i, text in enumerate(args):
            if text.startswith('--'):
                action = self._option_string_actions.get(text)  # None for --name=value
                count = action.nargs if action else 0
                waiting = {None: 1, '?': 1, '+': inf, '*': inf}.get(count, count)
            elif waiting:
                waiting -= 1
            else:
                places.append(i)
        return places


class _KeyValue(DictAction):
    """mmengine's ``KEY=VALUE``, with dicts, and a sentence where one is not of that form."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """A value with a dict as Python reads it, where mmengine would not end; others as ever."""
        if not re.search(r'\bdict\s*\(|^[\[(\s]*\{(\s*\}|.*:)', val):
            return DictAction._parse_iterable(val)
        try:
            return _plain(ast.parse(val.strip(), mode='eval').body)
        except (SyntaxError, TypeError, ValueError) as error:  # TypeError: a list as key
            expected = 'a dict of plain values, such as dict(a=1, b=(2, 3), c="d/e.pth")'
            raise ValueError(f'{expected} as value, got {val!r}') from error

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError) as error:
            wrong = next((value for value in values if '=' not in value), None)
            reason = f'got {wrong!r}' if wrong else str(error)
            if isinstance(error, RecursionError):  # mmengine's, of commas in odd places
                reason = f'got a value that is none, in {" ".join(values)!r}'
            raise argparse.ArgumentError(self, f'expected KEY=VALUE, {reason}') from error


def _plain(node: ast.expr) -> Any:
    """What an expression says: literals, containers of such, ``dict(...)``; names are text.

    Raises:
        ValueError: it says something else.
    """
    match node:
        case ast.Dict():
            return {
                _plain(key): _plain(value)
                for key, value in zip(node.keys, node.values, strict=True)
            }
        case ast.Call(func=ast.Name(id='dict'), args=[]) if all(
            each.arg for each in node.keywords
        ):
            return {each.arg: _plain(each.value) for each in node.keywords}
        case ast.List():
            return [_plain(each) for each in node.elts]
        case ast.Tuple():
            return tuple(_plain(each) for each in node.elts)
        case ast.Name(id=('true' | 'false') as text):
            return text == 'true'
        case ast.Name():  # shells take quotes away
            return node.id
    return ast.literal_eval(node)


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring with the lines that it has."""
    return _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config, and the option that changes its values."""
    parser.add_argument(
        'config',
        help='path, or name of a config of this repository; or a file of weights that holds its '
        'config, as mmfocal publish writes them',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_KeyValue,
        metavar='KEY=VALUE',
        help='change values of the config: a.b=1 c.0.d="[(1, 2)]"',
    )


def add_checkpoint(parser: argparse.ArgumentParser, untrained: str | None = None) -> None:
    """The checkpoint of a config's model.

    Args:
        parser: gets the argument.
        untrained: what ``none`` in its place means; None if it means nothing.
    """
    parser.add_argument(
        'checkpoint',
        help='path, URL, or work folder of a run: its best or newest checkpoint; left out where a '
        'file of weights stands for the config'
        + (f'; "none" for {untrained}' if untrained else ''),
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """How the processes of a run were started; :func:`parse_distributed` reads the rest."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch's old launcher gives one of the two, torchrun sets the environment itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def parse_distributed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; the rank among them goes where mmengine looks for it."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def options_of(kind: Callable[..., Options], args: argparse.Namespace) -> Options:
    """A dataclass of options, filled from arguments of the same names."""
    values: dict[str, Any] = vars(args)
    return kind(**{each.name: values[each.name] for each in fields(kind)})


def number_or_text(text: str) -> float | str:
    """Type of an option that takes a number or one of some words."""
    try:
        return float(text)
    except ValueError:
        return text


def natural(text: str) -> int:
    """Type of an option that takes a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number from 1, got {text!r}')
    return int(text)


def share(text: str) -> float:
    """Type of an option that takes a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'expected a number from 0 to 1, got {text!r}')
    return number

"""Changes checkpoints, annotations and images at random, and reads what comes out.

`PYTHONPATH=tests python -m tools.dev.fuzz_readers --cases 100000` prints a Markdown table;
`--bit-flips` turns every single bit of a checkpoint instead. Cases are read in processes of their
own, which may take 2 GiB and 20 seconds a case. A case has to be read, found bad or refused; it
must not run code (watched by Python's audit events), end the process, hang, or raise anything but
our own errors. An archive that is read although some bytes are others has to give what it gave
before: there are bytes between its entries that mean nothing.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import test_bad_input as bad_input
import torch
from mmengine.logging import HistoryBuffer

from mmfocal.engine import CheckpointError, load_checkpoint_file

SECONDS = 20  # for a case
MEMORY = 2 << 30  # bytes of address space beside what a process has when it begins
BATCH = 100  # cases read in one process
READ, REFUSED, ERROR, RAN = 0, 10, 11, 12
# Python's names for what a checkpoint must not reach.
EVENTS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.remove', 'os.rename')
EVENTS += ('subprocess.', 'socket.', 'shutil.', 'ctypes.', 'urllib.', 'webbrowser.', 'marshal.')
# What a changed pickle may ask for.
NAMES = [
    *(('os', 'system'), ('builtins', 'eval'), ('builtins', 'getattr'), ('builtins', '__import__')),
    *(('posix', 'system'), ('subprocess', 'Popen'), ('torch', 'load'), ('torch.hub', 'load')),
    *(('numpy', 'load'), ('collections', 'OrderedDict'), ('collections', 'Counter')),
    *(('mmengine.logging.history_buffer', 'HistoryBuffer'), ('numpy', 'dtype')),
    *(('numpy._core.multiarray', '_reconstruct'), ('numpy._core.multiarray', 'scalar')),
    *(('torch._utils', '_rebuild_tensor_v2'), ('torch', 'FloatStorage'), ('torch', 'Tensor')),
]


# --- Checkpoints ----------------------------------------------------------------------------


def checkpoint() -> dict:
    """Something of all that mmengine saves."""
    weights = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(3, dtype=torch.bfloat16))
    weights._metadata = {'': {'version': 1}}
    history = HistoryBuffer(np.arange(3.0), np.ones(3), 5)
    info = dict(iter=3, lr=np.float64(0.1), cfg='a = 1')
    return dict(
        state_dict=weights,
        meta=dict(epoch=1, iter=3, time='now', dataset_meta=dict(classes=('a', 'b'))),
        message_hub=dict(log_scalars=dict(loss=history), runtime_info=info, resumed_keys={}),
        optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1)]),
    )


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoint(), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def plain(value: Any) -> Any:
    """What can be compared: types, and text for what is no container."""
    if isinstance(value, HistoryBuffer):
        return 'HistoryBuffer', plain(vars(value))
    if isinstance(value, dict):
        metadata = plain(getattr(value, '_metadata', None))
        return type(value), metadata, [(plain(key), plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [plain(item) for item in value]
    return type(value), repr(value)


ZIPPED, LEGACY, EXPECTED = saved(True), saved(False), plain(checkpoint())
TENSORS = safetensors.torch.save({'a': torch.arange(6.0), 'b': torch.ones(2, 2)})
ARRAYS = {'a.weight': np.ones((2, 3), 'f4'), 'b': np.arange(3)}
PADDLE = [
    pickle.dumps({**ARRAYS, 'StructuredToParameterName@@': dict.fromkeys(ARRAYS, 'w_0')}, protocol)
    for protocol in (2, 4)
]


def changed(content: bytes, draw: random.Random) -> bytes:
    """With some bytes replaced, taken out, put in, doubled, or the end cut off."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 8])):
        at = draw.randrange(len(content) + 1)
        length = draw.choice([1, 1, 2, 4, 8, 16])
        change = draw.randrange(5)
        if change == 0:
            content[at : at + length] = draw.randbytes(length)
        elif change == 1:
            del content[at : at + length]
        elif change == 2:
            content[at:at] = draw.randbytes(length)
        elif change == 3:
            other = draw.randrange(len(content) + 1)
            content[at:at] = content[other : other + draw.choice([8, 32, 128])]
        elif draw.random() < 0.2:
            del content[at:]
    return bytes(content)


def call(draw: random.Random) -> bytes:
    """Opcodes that call something, with arguments of some kind."""
    module, name = draw.choice(NAMES)
    function = f'c{module}\n{name}\n'.encode()
    values = ['id', b'x', 3, -1, 2**70, 1.5, None, True, (), [], {}]
    chosen = tuple(draw.choices(values, k=draw.randrange(3)))
    arguments = pickle.dumps(chosen, protocol=2)[2:-1]
    end = draw.choice([b'R', b'R0', b'R}b', b'\x81', b'R(K\x01K\x02db'])
    return function + arguments + end


def changed_program(program: bytes, draw: random.Random) -> bytes:
    """A pickle with calls put in, other names asked for, or changed bytes."""
    for _ in range(draw.choice([1, 1, 2])):
        change = draw.randrange(3)
        if change == 0:
            at = draw.randrange(len(program) + 1)
            program = program[:at] + call(draw) + program[at:]
        elif change == 1 and (asked_for := list(re.finditer(rb'c[\w.]+\n\w+\n', program))):
            start, end = draw.choice(asked_for).span()
            module, name = draw.choice(NAMES)
            program = program[:start] + f'c{module}\n{name}\n'.encode() + program[end:]
        else:
            program = changed(program, draw)
    return program


def changed_archive(draw: random.Random) -> bytes:
    """A checkpoint in PyTorch's form whose program is changed; sums of its parts are right."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(ZIPPED)) as source,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                content = changed_program(content, draw)
            elif draw.random() < 0.05:
                content = changed(content, draw) if content else content
            target.writestr(name, content)
    return file.getvalue()


def read_checkpoint(content: bytes, suffix: str = '.pth', expected: Any = None) -> int:
    global watching
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'changed{suffix}'
        path.write_bytes(content)
        watching = True
        try:
            loaded = load_checkpoint_file(path)
        except CheckpointError:
            return REFUSED
        finally:
            watching = False
    if expected is not None and plain(loaded) != expected:
        raise AssertionError('It was read as something else than it was.')
    return READ


def flipped(bit: int) -> bytes:
    """The checkpoint with one bit turned."""
    content = bytearray(ZIPPED)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


watching = False
seen: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """Writes down what a checkpoint must not reach."""
    writes = event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')
    if watching and (writes or event.startswith(EVENTS)):
        seen.append(f'{event}{arguments!r:.200}')


# --- Data -----------------------------------------------------------------------------------


def read_annotations(draw: random.Random) -> int:
    with bad_input.in_empty_folder():
        bad_input.write_coco()
        if draw.random() < 0.7:
            Path('data/train.json').write_text(json.dumps(bad_input.with_odd_values(draw)))
        else:
            path = Path('data/train.json')
            path.write_bytes(changed(path.read_bytes(), draw))
        return found_by_check(draw)


def read_images(draw: random.Random) -> int:
    with bad_input.in_empty_folder():
        bad_input.write_coco(bad_input.other_form('1.png', lambda: bad_input.write_image('1.png')))
        for path in Path('data/images').iterdir():
            path.write_bytes(changed(path.read_bytes(), draw))
        return found_by_check(draw)


def found_by_check(draw: random.Random) -> int:
    lines = bad_input.report(bad_input.coco_config(), deep=draw.random() < 0.5)
    assert lines[-1].startswith('Data check: '), lines
    return READ if ': no errors, ' in lines[-1] else REFUSED


# --- Running --------------------------------------------------------------------------------

KINDS: dict[str, Callable[[random.Random], int]] = {
    'checkpoint, its program changed': lambda draw: read_checkpoint(changed_archive(draw)),
    'checkpoint, bytes changed': lambda draw: read_checkpoint(
        changed(ZIPPED, draw), expected=EXPECTED
    ),
    'checkpoint in the old form': lambda draw: read_checkpoint(changed_program(LEGACY, draw)),
    'arrays of PaddlePaddle': lambda draw: read_checkpoint(
        changed_program(draw.choice(PADDLE), draw), '.pdparams'
    ),
    'safetensors': lambda draw: read_checkpoint(changed(TENSORS, draw), '.safetensors'),
    'annotations': read_annotations,
    'images': read_images,
}


class Outcome(NamedTuple):
    """Of a case."""

    status: int
    seconds: float
    text: str


def in_process(read: Callable[[int], int], cases: range) -> list[Outcome]:
    """Reads cases in a process of their own, up to the first that ends it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, 'w') as pipe:
            limit = MEMORY + resource.getpagesize() * int(
                Path('/proc/self/statm').read_text().split()[0]
            )
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for case in cases:
                print(json.dumps(outcome(read, case)), file=pipe, flush=True)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        outcomes = [Outcome(*json.loads(line)) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGALRM:
        outcomes.append(Outcome(ERROR, SECONDS, 'It took too long.'))
    elif status:
        outcomes.append(Outcome(ERROR, 0, f'It ended the process with status {status}.'))
    return outcomes


def outcome(read: Callable[[int], int], case: int) -> Outcome:
    seen.clear()
    signal.alarm(SECONDS)
    begin, text = time.monotonic(), ''
    try:
        status = read(case)
    except BaseException:
        status, text = ERROR, traceback.format_exc()
    signal.alarm(0)
    if seen:
        status, text = RAN, '; '.join(seen)
    return Outcome(status, time.monotonic() - begin, text[-4000:])


def warm_up() -> None:
    """Imports here what reading and refusing import, and sees that good files are read.

    Raises:
        SystemExit: they are not.
    """
    good = [(ZIPPED, '.pth', EXPECTED), (LEGACY, '.pth', EXPECTED), (TENSORS, '.safetensors')]
    good += [(content, '.pdparams') for content in PADDLE]
    if any(read_checkpoint(*file) != READ for file in good):
        raise SystemExit('A file that is not changed was refused.')
    codecs.lookup('raw_unicode_escape')  # the form of text in old pickles
    draw = random.Random(0)
    for _ in range(30):
        read_checkpoint(changed(ZIPPED, draw))
        read_checkpoint(changed_program(LEGACY, draw))
        read_checkpoint(changed_program(draw.choice(PADDLE), draw), '.pdparams')
    sys.addaudithook(watch)
    if in_process(lambda case: read_checkpoint(ZIPPED), range(1))[0].status != READ:
        raise SystemExit('A file that is not changed was refused in a process of its own.')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=600, help='(default: 600)')
    parser.add_argument('--cases', type=int, help='of all kinds together, however long it takes')
    parser.add_argument('--seed', type=int, default=0, help='of the first case; others follow')
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=KINDS, metavar='KIND')
    parser.add_argument('--bit-flips', action='store_true', help='all of a checkpoint instead')
    args = parser.parse_args()
    warnings.simplefilter('ignore')  # PyTorch's remarks on odd files
    torch.set_num_threads(1)  # children of a fork cannot use the threads of their parent
    warm_up()
    kinds = {
        kind: (lambda case, read=KINDS[kind]: read(random.Random(case))) for kind in args.kinds
    }
    cases = range(args.seed, args.seed + math.ceil((args.cases or 1e12) / len(kinds)))
    end = math.inf if args.cases else time.monotonic() + args.seconds
    if args.bit_flips:
        kinds = {
            'one bit of a checkpoint': lambda case: read_checkpoint(
                flipped(case), '.pth', EXPECTED
            )
        }
        cases, end = range(8 * len(ZIPPED)), math.inf
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    size = BATCH if end == math.inf else 5
    for batch in (cases[at : at + size] for at in range(0, len(cases), size)):
        if time.monotonic() > end:
            break
        for kind, read in kinds.items():
            outcomes[kind] += all_of(kind, read, batch)
    print('| changed | cases | read | refused or found bad | anything else | slowest, s |')
    print('|---|---|---|---|---|---|')
    failed = 0
    for kind, found in outcomes.items():
        count = Counter(each.status for each in found)
        odd = len(found) - count[READ] - count[REFUSED]
        failed += odd
        print(
            f'| {kind} | {len(found):,} | {count[READ]:,} | {count[REFUSED]:,} | {odd:,} | '
            f'{max(each.seconds for each in found):.2f} |'
        )
    return int(failed > 0)


def all_of(kind: str, read: Callable[[int], int], cases: range) -> list[Outcome]:
    """Outcomes of all cases, in as many processes as it takes; tells what is wrong."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        outcomes += in_process(read, cases[len(outcomes) :])
    for case, each in zip(cases, outcomes, strict=True):
        if each.status not in (READ, REFUSED):
            print(f'{kind}, case {case}:\n{each.text}\n', file=sys.stderr, flush=True)
    return outcomes


if __name__ == '__main__':
    sys.exit(main())

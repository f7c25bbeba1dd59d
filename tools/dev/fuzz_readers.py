"""Changes checkpoints, annotations and images at random, and reads what comes out.

`PYTHONPATH=tests python -m tools.dev.fuzz_readers --seconds 600` prints a Markdown table. Each
case is read in a process of its own. It has to be read, found bad or refused; it must not run code
(watched by Python's audit events), end the process, hang, or raise anything but our own errors.
"""

from __future__ import annotations

import argparse
import io
import json
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

import numpy as np
import safetensors.torch
import test_bad_input as bad_input
import torch
from mmengine.logging import HistoryBuffer

from mmfocal.engine import CheckpointError, load_checkpoint_file

SECONDS = 20  # for a case
MEMORY = 32 << 30  # bytes of address space; PyTorch itself reserves a few GiB
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


ZIPPED, LEGACY = saved(True), saved(False)
TENSORS = safetensors.torch.save({'a': torch.arange(6.0), 'b': torch.ones(2, 2)})


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


def read_checkpoint(content: bytes, suffix: str = '.pth') -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'changed{suffix}'
        path.write_bytes(content)
        watch_events()
        try:
            load_checkpoint_file(path)
            return READ
        except CheckpointError:
            return REFUSED
        finally:
            global watching
            watching = False


watching = False
seen: list[str] = []


def watch_events() -> None:
    """From now on, writes down what a checkpoint must not reach."""
    global watching
    watching = True

    def hook(event: str, arguments: tuple) -> None:
        writes = (
            event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')
        )
        if watching and (writes or event.startswith(EVENTS)):
            seen.append(f'{event}{arguments!r:.200}')

    sys.addaudithook(hook)


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
    'checkpoint, bytes changed': lambda draw: read_checkpoint(changed(ZIPPED, draw)),
    'checkpoint in the old form': lambda draw: read_checkpoint(changed_program(LEGACY, draw)),
    'safetensors': lambda draw: read_checkpoint(changed(TENSORS, draw), '.safetensors'),
    'annotations': read_annotations,
    'images': read_images,
}


def in_process(read: Callable[[random.Random], int], seed: int) -> tuple[int, str]:
    """Status of a process that reads one case, and what it says of an error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status, text = ERROR, ''
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            status = read(random.Random(seed))
        except BaseException:
            text = traceback.format_exc()
        if seen:
            status, text = RAN, '; '.join(seen)
        os.write(writing, text[-4000:].encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        text = pipe.read().decode(errors='replace')
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        text = 'It took too long.' if -status == signal.SIGALRM else signal.strsignal(-status)
    return status, text


def warm_up() -> None:
    """Imports here what reading and refusing import, and sees that good files are read.

    Raises:
        SystemExit: they are not.
    """
    good = [(ZIPPED, '.pth'), (LEGACY, '.pth'), (TENSORS, '.safetensors')]
    if any(read_checkpoint(*file) != READ for file in good):
        raise SystemExit('A file that is not changed was refused.')
    draw = random.Random(0)
    for _ in range(30):
        read_checkpoint(changed(ZIPPED, draw))
        read_checkpoint(changed_program(LEGACY, draw))
    seen.clear()
    if in_process(lambda draw: read_checkpoint(ZIPPED), 0)[0] != READ:
        raise SystemExit('A file that is not changed was refused in a process of its own.')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=600, help='(default: 600)')
    parser.add_argument('--seed', type=int, default=0, help='of the first case; others follow')
    args = parser.parse_args()
    warnings.simplefilter('ignore')  # PyTorch's remarks on odd files
    torch.set_num_threads(1)  # children of a fork cannot use the threads of their parent
    warm_up()
    counts: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    end, seed = time.monotonic() + args.seconds, args.seed
    failed = False
    while time.monotonic() < end:
        for kind, read in KINDS.items():
            status, text = in_process(read, seed)
            counts[kind][status] += 1
            if status not in (READ, REFUSED):
                failed = True
                print(f'{kind}, seed {seed}:\n{text}\n', file=sys.stderr, flush=True)
        seed += 1
    print('| changed at random | cases | read | refused or found bad | anything else |')
    print('|---|---|---|---|---|')
    for kind, count in counts.items():
        fine = count[READ] + count[REFUSED]
        print(
            f'| {kind} | {count.total():,} | {count[READ]:,} | {count[REFUSED]:,} | '
            f'{count.total() - fine:,} |'
        )
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())

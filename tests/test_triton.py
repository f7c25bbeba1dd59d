"""Triton kernels without a GPU: run by Triton's interpreter, and compiled for two of NVIDIA's.

On a GPU test_focal_attention.py runs them as they are. ``python tests/test_triton.py`` prints what
the compiled kernels need.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

triton = pytest.importorskip('triton', reason='Triton is not installed')
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmfocal.geometry import ClosestGeometry, FocalGeometry
from mmfocal.ops.triton import backward_pass, bias_pass, forward_pass, layout
from mmfocal.ops.triton.layout import KEY_LAUNCH, QUERY_LAUNCH, SUM_LAUNCH, layout_of

ROOT = Path(__file__).parents[1]
POINTERS = {torch.bfloat16: '*bf16', torch.float16: '*fp16', torch.float32: '*fp32'}
ARCHITECTURES = (80, 90)


def version_of(package):
    return tuple(map(int, package.__version__.split('.')[:2]))


# It takes int() of arrays with one number, which numpy 2.4 no longer has.
needs_interpreter = pytest.mark.skipif(
    version_of(triton) < (3, 7) and version_of(np) >= (2, 4),
    reason=f'the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}: '
    'it needs Triton 3.7, or numpy below 2.4',
)


@needs_interpreter
@pytest.mark.parametrize(
    'arguments, at_least',
    [
        # In small groups of heads, and once all at once.
        (
            [
                'tests/test_focal_attention.py',
                '-k',
                'triton and (chunks or lower_precision and published)',
            ],
            50,
        ),
        (['tests/test_checkpoint.py', '-k', 'triton and three_levels and small'], 1),
        (['tests/test_table_bias.py'], 10),
        (['tests/test_tokens.py'], 40),
    ],
    ids=['semantics', 'golden case', 'position bias', 'tokens'],
)
def test_interpreted_kernels_pass(arguments, at_least):
    """The interpreter is chosen when kernels are defined, hence a process of its own."""
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    env['CUDA_VISIBLE_DEVICES'] = ''
    env.pop('MMFOCAL_GOLDEN', None)
    command = [sys.executable, '-m', 'pytest', *arguments, '--show-capture=no', '-rf']
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    passed = re.search(r'(\d+) passed', done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(passed[1]) >= at_least


class Compiled(NamedTuple):
    """What a kernel needs on an architecture."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    exponentials: int
    ptx: str


# Stage 1 of the detection setting.
GEOMETRY = FocalGeometry(focal_window=15)
SHAPE = dict(HEADS=3, DIM=32, BLOCK_DIM=32, QUERIES=64, SLOTS=448, TILE=64)
SHAPE |= dict(HAS_REGIONS=False, HAS_COLUMNS=False)
# Stage 1 of the second version, with its 128 closest tokens and cells.
CLOSEST = dict(HAS_COLUMNS=True, SLOTS=256, OPEN_SLOTS=256, LISTED=256)
SUMS = {2: SUM_LAUNCH, 4: SUM_LAUNCH}
# Of each kernel: constants besides those of the shape, how it is compiled, and the dtypes of
# pointers that are not those of the inputs.
KERNELS = {
    'forward': (forward_pass.forward_kernel, dict(OPEN_SLOTS=128), QUERY_LAUNCH, {}),
    'query gradient': (backward_pass.query_grad_kernel, dict(OPEN_SLOTS=128), QUERY_LAUNCH, {}),
    'key gradient': (
        backward_pass.key_grad_kernel,
        dict(LISTED=394, GROUP_HEADS=3, BIAS_NEEDS_GRAD=True, ADDS=True),
        KEY_LAUNCH,
        {},
    ),
    'sum by token': (
        backward_pass.sum_by_token_kernel,
        dict(
            LISTED=394,
            GROUP_HEADS=3,
            QUERY_TILES=1,
            CHANNELS=32,
            MAP_TOKENS=backward_pass.MAP_TOKENS,
            POOLED_PLACES=backward_pass.POOLED_PLACES,
        ),
        SUMS,
        {},
    ),
    'sum of the bias': (
        backward_pass.sum_bias_kernel,
        dict(BLOCK=backward_pass.BIAS_KEYS, RUNS=backward_pass.BIAS_RUNS),
        SUMS,
        {},
    ),
    'sum by column': (
        backward_pass.sum_by_column_kernel,
        dict(LISTED=256, GROUP_HEADS=3, PLACES=backward_pass.COLUMN_PLACES, ADDS=True),
        SUMS,
        {},
    ),
    'tiled bias': (
        layout.tile_bias_kernel,
        dict(BLOCK=layout.BIAS_BLOCK, LOG2_E=layout.LOG2_E, LIMIT=65504.0),
        SUMS,
        dict(bias_ptr='*fp32', tiled_ptr='*fp16'),
    ),
    'bias': (
        bias_pass.gather_bias_kernel,
        dict(BLOCK=bias_pass.PLACES, HAS_SECOND=True),
        SUMS,
        {},
    ),
    'bias gradient': (
        bias_pass.sum_by_number_kernel,
        dict(BLOCK=bias_pass.NUMBERS, HAS_SECOND=True),
        SUMS,
        {},
    ),
}
OF_ATTENTION = ('forward', 'query gradient', 'key gradient')


def compile_for(kernel, dtype, architecture, **shape):
    """Compiles a kernel to machine code and reads the assembler's report."""
    function, constants, launches, special_types = KERNELS[kernel]
    shape = SHAPE | shape
    for table in ('regions', 'columns'):
        if not shape[f'HAS_{table.upper()}']:
            shape[f'{table}_ptr'] = None  # as it is launched then
    launch = launches[dtype.itemsize]
    constants = constants | dict(PRECISION=launch.precision)
    constants = {n: v for n, v in (constants | shape).items() if n in function.arg_names}
    types = dict.fromkeys(('scale', 'scale_log2'), 'fp32')
    types |= dict.fromkeys(('queries_ptr', 'slots_ptr', 'entries_ptr', 'offsets_ptr'), '*i32')
    types |= dict.fromkeys(('lse_ptr', 'delta_ptr', 'grad_bias_ptr'), '*fp32')
    types |= dict(regions_ptr='*i8', columns_ptr='*i32')
    types |= dict.fromkeys(('partial_ptr', 'sum_ptr', 'grad_ptr', 'table_ptr'), '*fp32')
    types |= dict.fromkeys(('first_ptr', 'second_ptr'), '*i32')
    types['bias_ptr'] = '*fp32' if dtype == torch.float32 else '*fp16'
    types |= special_types
    types |= dict.fromkeys(constants, 'constexpr')
    names = function.arg_names
    pointers = [n for n in names if n.endswith('_ptr') and n not in constants]
    signature = {n: types.get(n, POINTERS[dtype] if n in pointers else 'i32') for n in names}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [['tt.divisibility', 16]] for n in pointers},
    )
    options = {
        name: value
        for name, value in launch.options(shape['BLOCK_DIM']).items()
        if value is not None
    }
    made = triton.compile(source, target=GPUTarget('cuda', architecture, 32), options=options)
    report = assemble(made.asm['ptx'])
    spills = re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', report)
    return Compiled(
        registers=int(re.search(r'Used (\d+) registers', report)[1]),
        spilled_bytes=max(map(int, spills.groups())),
        shared_bytes=made.metadata.shared,
        exponentials=len(re.findall(r'ex2\.approx', made.asm['ptx'])),
        ptx=made.asm['ptx'],
    )


def assemble(ptx):
    """What the assembler that comes with Triton says; of two, the one that knows this PTX."""
    architecture = re.search(r'\.target (\w+)', ptx)[1]
    tools = triton.knobs.nvidia
    failures = []
    for tool in (tools.ptxas, getattr(tools, 'ptxas_blackwell', None)):
        if tool is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'kernel.ptx')
            file.write_text(ptx)
            command = [
                tool.path,
                '-v',
                f'-arch={architecture}',
                file,
                '-o',
                file.with_suffix('.o'),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stderr
        failures.append(done.stderr)
    raise RuntimeError('\n'.join(failures))


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('dtype', POINTERS, ids=str)
@pytest.mark.parametrize('kernel', KERNELS)
def test_kernels_compile_to_what_was_planned(kernel, dtype, architecture):
    made = compile_for(kernel, dtype, architecture)
    loops = 2 if kernel in ('forward', 'query gradient') else 1  # all seen, and masked
    if dtype.itemsize == 2:
        # Four programs of four warps share the 65,536 registers of a multiprocessor, or three,
        # which gains more than a few bytes of spills cost.
        assert made.spilled_bytes <= 24
        assert made.registers <= (168 if kernel == 'key gradient' else 128)
        # Of each score one exponential is taken, not two to change its layout; and in the forward
        # pass one of each row's largest score.
        scores = loops * 64 * 64 // 128
        if kernel in OF_ATTENTION:
            extra = (2, 8) if kernel == 'forward' else (0, 0)
            assert scores + extra[0] <= made.exponentials <= scores + extra[1]
    if architecture == 90 and kernel in OF_ATTENTION and dtype.itemsize == 2:
        assert 'wgmma.mma_async' in made.ptx
    if kernel in ('forward', 'query gradient'):
        assert 'cp.async' in made.ptx  # gathered rows are on their way while others are used


@pytest.mark.parametrize(
    'shape',
    [
        dict(DIM=24, HAS_REGIONS=True),
        dict(DIM=64, BLOCK_DIM=64, OPEN_SLOTS=0, SLOTS=64, LISTED=49),
        dict(DIM=16, BLOCK_DIM=16, QUERIES=192, QUERY_TILES=3),
        CLOSEST,
    ],
    ids=['shifted windows, 24 channels', 'local, 64 channels', 'window of 12', 'closest'],
)
@pytest.mark.parametrize('kernel', KERNELS)
def test_kernels_compile_for_other_shapes(kernel, shape):
    made = compile_for(kernel, torch.bfloat16, 90, **shape)
    assert made.spilled_bytes <= 80  # masks of channels need a little more


def test_compiled_shape_is_that_of_the_detection_setting():
    layout = layout_of(GEOMETRY.keys(50, 84), torch.device('cpu'))
    assert layout.queries.shape[1] == SHAPE['QUERIES'] and layout.slots.shape[1] == SHAPE['SLOTS']
    assert layout.num_slots == 394 and layout.open_slots == 128 and layout.regions is None


@pytest.mark.parametrize('size', [(3, 8), (15, 15)])
@pytest.mark.parametrize('shift', [0, 3])
def test_layout_holds_the_keys_and_nothing_else(size, shift):
    geometry = FocalGeometry(focal_window=3, shift_size=shift)
    keys = geometry.keys(*size)
    tables, layout = keys.tables(), layout_of(keys, torch.device('cpu'))
    listed = layout.slots[:, : keys.num_keys]
    assert torch.equal(listed >= 0, tables.valid)
    assert torch.equal(listed[tables.valid].long(), tables.index[tables.valid])
    assert (layout.slots[:, keys.num_keys :] == -1).all()
    assert torch.equal(layout.queries[:, :49].long(), tables.queries)
    assert (layout.queries[:, 49:] == -1).all()
    assert tables.allowed()[..., : layout.open_slots].all()
    assert (layout.open_slots > 0) == (shift == 0)
    assert layout.columns is None


def test_layout_of_the_closest_keys_has_their_columns():
    keys = ClosestGeometry(top_k=30).keys(15, 22)
    tables, layout = keys.tables(), layout_of(keys, torch.device('cpu'))
    assert keys.num_keys == 42 and layout.columns.shape == layout.slots.shape == (12, 64)
    assert torch.equal(layout.columns[:, :42].long(), tables.columns)
    assert (layout.slots[:, :42] >= 0).all() and (layout.slots[:, 42:] == -1).all()
    assert layout.open_slots == 0 and layout.regions is None
    assert layout_of(ClosestGeometry().keys(56, 56), torch.device('cpu')).open_slots == 192


def test_layouts_are_bounded_by_their_bytes(monkeypatch):
    layouts, device = layout.Layouts(), torch.device('cpu')
    first = layouts.get(GEOMETRY.keys(20, 30), device)
    monkeypatch.setattr(layout, 'LAYOUT_BYTES', 12 * first.bytes())
    for side in range(20, 60):
        latest = layouts.get(GEOMETRY.keys(side, 30), device)
        assert layouts.get(GEOMETRY.keys(side, 30), device) is latest
        assert sum(each.bytes() for each in layouts) <= 12 * first.bytes()
    kept = [*layouts]
    assert len(kept) >= 3 and kept[-1] is latest
    assert not any(each is first for each in kept)
    assert layouts.get(GEOMETRY.keys(58, 30), device) is kept[-2]


def print_table():
    print(f'triton {triton.__version__}')
    print('| kernel | inputs | for | registers | spilled | shared memory | exponentials |')
    print('|---|---|---|---|---|---|---|')
    for kernel in KERNELS:
        for dtype in POINTERS:
            for architecture in ARCHITECTURES:
                made = compile_for(kernel, dtype, architecture)
                print(
                    f'| {kernel} | {str(dtype)[6:]} | sm_{architecture} | {made.registers} | '
                    f'{made.spilled_bytes} B | {made.shared_bytes / 1024:.0f} KB | '
                    f'{made.exponentials} |'
                )


if __name__ == '__main__':
    print_table()

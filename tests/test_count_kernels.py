"""What training steps ask of a GPU, and what the kernels that they launch are compiled to.

No GPU is needed: steps run on fake tensors, and NVIDIA's assembler comes with Triton.
"""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfocal import FocalTransformer

triton = pytest.importorskip('triton', reason='Triton is not installed')

from tools.dev.count_kernels import (
    DETECTION,
    MODELS,
    PASSES,
    Case,
    case_of,
    code_of,
    count_step,
    makes_nothing,
    shape_text,
    shipped,
    totals,
    variants_of,
)

pytestmark = pytest.mark.skipif(
    os.environ.get('TRITON_INTERPRET') == '1', reason='the interpreter compiles nothing'
)

ROOT = Path(__file__).parents[1]
TILE = 64
QUERY_KERNELS = ('forward_kernel', 'query_grad_kernel')
ATTENTION = (*QUERY_KERNELS, 'key_grad_kernel')
FIRST = dict(type='FocalTransformer', focal_windows=(15, 13, 9, 7))
FAST = dict(type='FocalTransformerFast')


# --- Launches -------------------------------------------------------------------------------


def counts_of_page():
    """The last table of docs/tables/kernels.md that the command prints, by model and pass."""
    text = (ROOT / 'docs/tables/kernels.md').read_text()
    header = '| model | pass | our kernels | operators | together | of one kernel for certain |'
    table = text.rpartition(header)[2].partition('\n\n')[0]
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.split('\n')[2:]
    ]
    return {(model, name): [*map(int, numbers)] for model, name, *numbers in rows}


@pytest.mark.parametrize('model', MODELS)
def test_a_step_asks_for_no_more_than_the_page_says(model):
    counts = count_step(MODELS[model](), DETECTION)
    page = counts_of_page()
    for name, passes in PASSES.items():
        ours, operators, together, _ = totals(counts, passes)
        most = page[model, name]
        assert ours <= most[0] and operators <= most[1], (name, ours, operators)
        assert together <= most[2]


def test_focal_asks_for_less_than_swin():
    page = counts_of_page()
    assert page['Focal-T, detection windows', 'both'][2] < page['Swin-T', 'both'][2]


def test_kernels_of_a_step_are_counted_by_hand():
    """A block of one stage: its tokens, its bias, attention, and their gradients."""
    arch = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    case = Case(dict(FIRST, arch=arch, focal_windows=3, out_indices=(0,)), (64, 64), 2)
    counts = count_step(case.make(), case.size, case.batch)
    launched = {
        name: Counter(variant.name for variant in of_pass.launches.elements())
        for name, of_pass in counts.items()
    }
    operators = {name: of_pass.operators for name, of_pass in counts.items()}
    forward = ('tokens', 'gather_bias', 'tile_bias', 'forward')
    backward = (
        *('query_grad', 'key_grad', 'sum_by_token', 'sum_bias', 'sum_by_number'),
        *('tokens_grad', 'sum_partials'),
    )
    assert launched == {
        'forward': {f'{name}_kernel': 1 for name in forward},
        'backward': {f'{name}_kernel': 1 for name in backward},
    }
    # Of queries, keys and values; of the output; and of the MLP's two layers.
    products = {name: ops['aten.addmm'] + ops['aten.mm'] for name, ops in operators.items()}
    assert products == {'forward': 4, 'backward': 8}


def test_operators_are_those_of_a_real_step():
    """In float32, where autocast is not in the way; backends that need no kernels."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not makes_nothing(func):
                seen[str(func).removesuffix('.default')] += 1
            return func(*args, **kwargs or {})

    arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    settings = dict(FIRST, arch=arch, focal_windows=3, attention_backend='reference')
    case = Case(dict(settings, out_indices=(0, 1)), (60, 92), 1)
    counted = count_step(case.make(), case.size, case.batch, torch.float32)
    model = FocalTransformer(**{n: v for n, v in case.settings.items() if n != 'type'})
    image, seen = torch.randn(1, 3, 60, 92), Counter()
    model(image)  # makes the tables
    with Seen():
        sum(out.float().mean() for out in model(image)).backward()
    assert counted['forward'].operators + counted['backward'].operators == seen


def test_variants_are_the_same_for_all_sizes():
    """Sizes of maps are no constants, and Triton takes no special note of any."""
    sizes = (448, 448), (611, 347), (64, 99)
    found = [set(variants_of({'': case_of(FIRST, size, 1)}, [torch.bfloat16])) for size in sizes]
    assert found[0] == found[1] == found[2]
    for variant in found[0]:
        types = [type_ for _, type_ in variant.types if not type_.startswith('*')]
        assert set(types) <= {'i32', 'fp32'}, variant
        assert set(variant.function.do_not_specialize) <= set(variant.function.arg_names)


# --- Machine code ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def variants():
    """A kernel of each kind that ships for bfloat16.

    Of a kind are those that differ in numbers of heads and of slots alone, but loop or do not.
    """
    # Wider models have more heads of the same.
    cases = {}
    for name, case in shipped().items():
        arch = case.settings['arch']
        of_head = arch['embed_dims'] / arch['num_heads'][0]
        others = {key: value for key, value in case.settings.items() if key != 'arch'}
        cases.setdefault(f'{of_head} {others} {case.size}', (name, case))
    kinds = {}
    for variant in variants_of(dict(cases.values()), [torch.bfloat16]):
        kinds.setdefault(kind_of(variant), variant)
    assert len(kinds) > 80
    return kinds.values()


def kind_of(variant):
    constants = dict(variant.constants)
    for name in ('HEADS', 'GROUP_HEADS', 'LISTED'):
        constants.pop(name, None)
    if 'OPEN_SLOTS' in constants:
        slots, is_open = constants.pop('SLOTS'), constants.pop('OPEN_SLOTS')
        constants['loops'] = [min(count // TILE, 2) for count in (is_open, slots - is_open)]
    return variant.function, variant.types, variant.options, str(constants)


def named(variants, *names):
    found = [variant for variant in variants if variant.name in names]
    assert found
    return found


def exponentials(variant):
    """Of a thread, for one of each score, and in the forward pass one of each row's largest."""
    bodies = 1
    if variant.name in QUERY_KERNELS:
        bodies = (variant['OPEN_SLOTS'] > 0) + (variant['OPEN_SLOTS'] < variant['SLOTS'])
    threads = 32 * dict(variant.options)['num_warps']
    # Rows are spread over the warps: 16 of each, two for each thread of a group of four.
    return bodies * TILE**2 // threads, bodies * 2 if variant.name == 'forward_kernel' else 0


@pytest.mark.parametrize('kernel', ATTENTION)
def test_one_exponential_is_taken_of_each_score(variants, kernel):
    doubled = {}
    for variant in named(variants, kernel):
        of_scores, of_rows = exponentials(variant)
        found = code_of(variant).ptx.count('ex2.approx')
        if not of_scores + of_rows <= found <= of_scores + 4 * of_rows:
            doubled[shape_text(variant)] = (found, of_scores, of_rows)
    assert not doubled, doubled


# What an earlier one makes differs by a few bytes and registers.
needs_compiler = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split('.')[:2])) < (3, 7),
    reason=f'these numbers are of Triton 3.7, and {triton.__version__} is installed',
)


@needs_compiler
@pytest.mark.parametrize('kernel', ATTENTION)
def test_kernels_of_attention_keep_to_their_registers(variants, kernel):
    """Four programs of four warps share a multiprocessor's 65,536 registers, or three."""
    beyond = {}
    for variant in named(variants, kernel):
        code = code_of(variant)
        most = dict(variant.options).get('maxnreg', 255)
        if code.registers > most or code.frame_bytes > SPILLED[kernel]:
            beyond[shape_text(variant)] = (code.registers, code.frame_bytes)
    assert not beyond, beyond


# Bytes. Three programs of the key kernel gain more than a few bytes of spills cost, and with heads
# of 48 channels it has all registers that there are.
SPILLED = dict.fromkeys(QUERY_KERNELS, 0) | dict(key_grad_kernel=32)


@needs_compiler
def test_other_kernels_spill_nothing(variants):
    others = [variant for variant in variants if variant.name not in ATTENTION]
    codes = {variant: code_of(variant) for variant in others}
    assert len({variant.name for variant in others}) >= 7
    assert not {v for v, code in codes.items() if code.frame_bytes or code.registers > 128}


def test_tokens_move_in_vectors(variants):
    for variant in named(variants, 'tokens_kernel', 'tokens_grad_kernel'):
        code = code_of(variant)
        assert 'ld.global.v4' in code.ptx and 'st.global.v4' in code.ptx, variant
        if variant.name == 'tokens_kernel':
            assert code.registers <= 64, variant  # 1024 threads at least
        # What is divided are numbers of windows and blocks, one for all threads.
        assert len(re.findall(r'\bdiv\.', code.ptx)) <= 4, variant


def test_products_are_done_by_matrix_units_and_rows_come_in_time(variants):
    for variant in named(variants, *ATTENTION):
        assert 'wgmma.mma_async' in code_of(variant).ptx, variant
        if variant.name not in QUERY_KERNELS:
            continue
        slots, is_open = variant['SLOTS'], variant['OPEN_SLOTS']
        if max(is_open, slots - is_open) > TILE:  # rows of the next tile, while this one is used
            assert 'cp.async' in code_of(variant).ptx, variant


@pytest.mark.parametrize(
    'dtype, architecture, settings',
    [
        (torch.float16, 80, FIRST),
        (torch.float16, 80, FAST),
        (torch.float16, 90, FAST),
        (torch.float32, 90, FIRST),
    ],
    ids=['float16, sm_80', 'fast, float16, sm_80', 'fast, float16, sm_90', 'float32, sm_90'],
)
def test_other_dtypes_and_gpus(dtype, architecture, settings):
    cases = {'': case_of(dict(settings, out_indices=(0,)), DETECTION, 2)}
    for variant in variants_of(cases, [dtype], [architecture]):
        code = code_of(variant)
        if variant.name not in ATTENTION:
            assert code.frame_bytes == 0, variant
        elif dtype == torch.float16:
            # As above; without Hopper's matrix units, kernels need more.
            assert code.frame_bytes <= (SPILLED[variant.name] if architecture == 90 else 80)
            of_scores, of_rows = exponentials(variant)
            found = code.ptx.count('ex2.approx')
            assert of_scores <= found <= of_scores + 4 * of_rows, variant


@pytest.mark.parametrize('architecture', [80, 86, 120])
def test_wide_heads_in_float32_fit_other_gpus(architecture):
    """GeForce cards give a program 99 KiB of shared memory.

    Where NVIDIA's assembler gives up, as it may for an A100, it spills 7 KB and more.
    """
    arch = dict(embed_dims=64, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    case = case_of(dict(FIRST, arch=arch, use_shift=True, border='mask'), DETECTION, 2)
    variants = named(variants_of({'': case}, [torch.float32], [architecture]), *ATTENTION)
    kinds = {(variant.name, variant['HAS_REGIONS']): variant for variant in variants}
    assert len(kinds) == 6  # shifted or not
    for variant in kinds.values():
        code = code_of(variant)
        assert code.shared_bytes <= 99 * 1024, (variant.name, code.shared_bytes)
        assert code.frame_bytes <= (256 if variant.name in QUERY_KERNELS else 2048), variant.name


def test_code_is_what_the_assembler_reports(tmp_path):
    """Registers and spills are read from the code; the assembler tells them too."""
    case = case_of(FIRST, DETECTION, 2)
    (variant, *_) = named(variants_of({'': case}, [torch.bfloat16]), 'key_grad_kernel')
    code, file = code_of(variant), tmp_path / 'kernel.ptx'
    file.write_text(code.ptx)
    command = [triton.knobs.nvidia.ptxas.path, '-v', '-arch=sm_90a', file, '-o', tmp_path / 'o']
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert code.registers == int(re.search(r'Used (\d+) registers', report)[1])
    spills = re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', report)
    assert code.spilled_bytes == max(map(int, spills.groups()))
    frame = int(re.search(r'(\d+) bytes stack frame', report)[1])
    assert code.frame_bytes == frame and (frame > 0) == (code.spilled_bytes > 0)
    assert code.exponentials == code.ptx.count('ex2.approx')

"""What a GPU is asked to do, counted without one: kernels of a training step, and what is in ours.

    python -m tools.dev.count_kernels [--all] [--only launches|code]

Operators are counted on fake tensors, which have shapes and no memory; our kernels are not
launched then, but noted. Those that models launched are compiled for GPUs that need not be there.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import mmengine.config.utils
import torch
import triton
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mmfocal import models
from mmfocal.engine import load_config
from mmfocal.engine.config import REPOSITORY
from mmfocal.engine.misspelt import items_of
from mmfocal.geometry import FocalKeys
from mmfocal.models.settings import ARCH_SETTINGS
from mmfocal.ops import attention, registration
from mmfocal.ops import triton as kernels
from mmfocal.ops.triton import backward_pass, forward_pass, layout
from tools.dev.timing.cases import FAST, YARDSTICK, backbones

TYPES = {
    torch.float32: 'fp32',
    torch.bfloat16: 'bf16',
    torch.float16: 'fp16',
    torch.int64: 'i64',
    torch.int32: 'i32',
    torch.int8: 'i8',
    torch.bool: 'i1',
}


@dataclass(frozen=True)
class Variant:
    """A kernel as it is compiled.

    Attributes:
        function: of Triton.
        types: name and type of each argument; a number of which Triton assumes that 16 divides it
            has ``:16`` after its type.
        constants: name and value of each constant.
        options: of the compiler.
        architecture: of the GPU that launches it, 90 for compute capability 9.0.
    """

    function: JITFunction
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]
    architecture: int

    @property
    def name(self) -> str:
        return self.function.__name__

    def __getitem__(self, name: str) -> Any:
        """A constant, or the type of an argument."""
        return {**dict(self.types), **dict(self.constants)}[name]


def variant_of(
    function: JITFunction, args: Sequence[Any], kwargs: Mapping[str, Any], architecture: int
) -> Variant:
    """What Triton would compile for a launch, all tensors being aligned."""
    given = {**dict(zip(function.arg_names, args, strict=False)), **kwargs}
    types, constants = {}, {}
    for parameter in function.params:
        name, value = parameter.name, given.pop(parameter.name)
        if isinstance(value, Tensor):
            types[name] = '*' + TYPES[value.dtype]
        elif parameter.is_constexpr or value is None:
            constants[name] = value
        elif isinstance(value, float):
            types[name] = 'fp32'
        elif value == 1 and not parameter.do_not_specialize:
            constants[name] = value
        else:
            types[name] = 'i32' if -(2**31) <= value < 2**31 else 'i64'
            if value % 16 == 0 and not parameter.do_not_specialize:
                types[name] += ':16'
    options = {name: value for name, value in given.items() if value is not None}
    parts = (tuple(each.items()) for each in (types, constants, options))
    return Variant(function, *parts, architecture)


# --- Launches -------------------------------------------------------------------------------


@dataclass
class Counts:
    """What a pass asked for: operators that are no views, and launches of our kernels."""

    operators: Counter[str] = field(default_factory=Counter)
    single: int = 0  # of the operators, those that are one kernel at most
    launches: Counter[Variant] = field(default_factory=Counter)


class Recorder(TorchDispatchMode):
    """Counts, inside it, what PyTorch runs and what of ours Triton would launch.

    Attributes:
        counts: by phase.
        phase: the present one, to be changed over time.
        architecture: of the GPU.
    """

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.counts: dict[str, Counts] = {}
        self.phase = 'forward'

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not makes_nothing(func):
            counts = self.counts.setdefault(self.phase, Counts())
            counts.operators[str(func).removesuffix('.default')] += 1
            counts.single += torch.Tag.pointwise in func.tags or str(func).startswith(SINGLE)
        return func(*args, **kwargs or {})

    def launch(self, function: JITFunction, *args: Any, **kwargs: Any) -> None:
        del kwargs['grid'], kwargs['warmup']
        counts = self.counts.setdefault(self.phase, Counts())
        counts.launches[variant_of(function, args, kwargs, self.architecture)] += 1


# Operators without a kernel: they make memory, or views, or only ask.
NOTHING = ('aten.empty', 'aten.new_empty', 'aten._unsafe_view', 'aten.detach', 'prim.')
# Of one kernel, besides those that PyTorch calls pointwise.
SINGLE = (
    *('aten._to_copy', 'aten.copy_', 'aten.clone', 'aten.cat', 'aten.constant_pad_nd'),
    *('aten.fill', 'aten.zero', 'aten.new_zeros', 'aten.ones', 'aten.full', 'aten.arange'),
    *('aten.roll', 'aten.index.Tensor', 'aten.bernoulli', 'aten.slice_backward'),
)


def makes_nothing(func: Any) -> bool:
    return func.is_view or str(func).startswith(NOTHING)


class AutocastOfCuda(TorchFunctionMode):
    """Has autocast on a CPU take to float32 what it does on a GPU, of what backbones call."""

    TO_FLOAT32: ClassVar[set[Callable]] = {
        nn.functional.layer_norm,
        nn.functional.group_norm,
        nn.functional.softmax,
        torch.softmax,
        Tensor.softmax,
        torch.logaddexp,
        *(torch.sum, Tensor.sum, torch.pow, Tensor.pow, torch.exp, Tensor.exp),
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in self.TO_FLOAT32 and torch.is_autocast_enabled('cpu'):
            args = tuple(
                arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
                for arg in args
            )
        return func(*args, **kwargs or {})


@contextmanager
def recording(architecture: int) -> Iterator[Recorder]:
    """Runs everything inside on fake tensors, with our kernels where they would be on a GPU.

    The tensors are a CPU's, since PyTorch without CUDA has no autocast of fake tensors of a GPU.
    """

    def on_real_tensors(function: Callable) -> Callable:
        @wraps(function)
        def call(*args: Any) -> Any:
            with _disable_current_modes():
                return function(*args)

        return call

    def takes_all(*call: object, **options: object) -> None:
        return None

    def launch(function: JITFunction, *args: Any, **kwargs: Any) -> None:
        recorder.launch(function, *args, **kwargs)

    recorder = Recorder(architecture)
    forget = (attention._choose_once, getattr(kernels, '_takes', None))
    with ExitStack() as stack:
        of_kernels = attention.FUSED['triton']._replace(why_not=takes_all)
        stack.enter_context(patch.dict(attention.FUSED, triton=of_kernels))
        stack.enter_context(patch.object(kernels, 'why_not', takes_all))
        stack.enter_context(patch.object(JITFunction, 'run', launch))
        stack.enter_context(patch.object(attention, 'print_log', takes_all))
        stack.enter_context(patch.object(FakeTensor, 'data_ptr', lambda tensor: 0))
        # Operators of ours run as they do on a GPU, and are no operators to PyTorch.
        for module in (attention, registration):
            stack.enter_context(patch.object(module, 'runs_eagerly', lambda *tensors: True))
        # Tables are made of numbers, which fake tensors have not.
        for home, name in (
            (FocalKeys, 'tables'),
            (forward_pass, 'layout_of'),
            (backward_pass, 'layout_of'),
            (sys.modules['mmfocal.ops.table_bias'], 'listings_of'),
        ):
            if hasattr(home, name):
                table = on_real_tensors(getattr(home, name))
                stack.enter_context(patch.object(home, name, table))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        capability = divmod(architecture, 10)
        stack.enter_context(patch.object(layout, 'capability_of', lambda device: capability))
        for function in filter(None, forget):
            function.cache_clear()
            stack.callback(function.cache_clear)
        yield recorder


def without_memory(model: nn.Module) -> nn.Module:
    """The same model, with fake tensors."""
    for module in model.modules():
        for tensors, make in (
            (module._parameters, nn.Parameter),
            (module._buffers, Tensor.detach),
        ):
            for name, value in tensors.items():
                if value is not None:
                    tensors[name] = make(torch.empty(value.shape, dtype=value.dtype))
    return model


def count_step(
    model: nn.Module,
    size: tuple[int, int],
    batch: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    architecture: int = 90,
) -> dict[str, Counts]:
    """What a training step asks for, by ``'forward'`` and ``'backward'``.

    Tables of keys are there already, as after a first image of that size.

    Args:
        model: whose parameters are lost.
        size: height and width of images in pixels.
        batch: images at once.
        dtype: of autocast; float32 for none.
        architecture: of the GPU.
    """
    model.train()
    with recording(architecture) as recorder:
        model, image = without_memory(model), torch.empty(batch, 3, *size)
        with AutocastOfCuda(), recorder:
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                loss = sum(out.float().mean() for out in model(image))
            recorder.phase = 'backward'
            loss.backward()
    return recorder.counts


# --- Machine code ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """What a kernel is compiled to, for a GPU such as 90 for an H100.

    Attributes:
        made: by Triton.
        registers: of a thread.
        frame_bytes: of a thread's local memory, where registers are spilled to.
    """

    made: Any
    registers: int
    frame_bytes: int

    @property
    def ptx(self) -> str:
        return self.made.asm['ptx']

    @property
    def shared_bytes(self) -> int:
        """Of a program."""
        return self.made.metadata.shared

    @cached_property
    def instructions(self) -> list[tuple[int, str]]:
        """Of a thread, each with its address. Takes as long as compiling."""
        lines = re.findall(
            r'^\s+/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;', cuobjdump('-sass', self.made), re.MULTILINE
        )
        return [(int(at, 16), text) for at, text in lines if not text.startswith('NOP')]

    @property
    def loops(self) -> list[int]:
        """Instructions of each loop that has no other inside, in the order of the code."""
        jumps = (
            (re.search(r'\bBRA\b.*?(0x[0-9a-f]+)', text), at) for at, text in self.instructions
        )
        loops = [(int(to[1], 16), at) for to, at in jumps if to and int(to[1], 16) < at]
        inner = [
            (start, end)
            for start, end in loops
            if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
        ]
        return [sum(s <= at <= e for at, _ in self.instructions) for s, e in sorted(inner)]

    @property
    def exponentials(self) -> int:
        """Instructions that take one of each of their threads."""
        return sum('MUFU.EX2' in text for _, text in self.instructions)

    @property
    def spilled_bytes(self) -> int:
        """Bytes that instructions write to local memory, or read from there."""
        return max(
            sum(width * count for width, count in self.widths(name).items())
            for name in ('STL', 'LDL')
        )

    def widths(self, name: str) -> Counter[int]:
        """How many instructions of a name move how many bytes for a thread."""
        found = Counter()
        for _, text in self.instructions:
            if match := re.search(rf'\b{name}\b(\S*)', text):
                bits = re.search(r'\.[US]?(8|16|32|64|128)\b', match[1])
                found[int(bits[1]) // 8 if bits else 4] += 1
        return found


@cache
def code_of(variant: Variant) -> Code:
    """Compiles a kernel."""
    names = variant.function.arg_names
    types = {name: type_.partition(':')[0] for name, type_ in variant.types}
    types |= {name: 'constexpr' for name, _ in variant.constants}
    multiples = [n for n, type_ in variant.types if type_.startswith('*') or type_.endswith(':16')]
    source = ASTSource(
        fn=variant.function,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants},
        attrs={(names.index(name),): [['tt.divisibility', 16]] for name in multiples},
    )
    target = GPUTarget('cuda', variant.architecture, 32)
    made = triton.compile(source, target=target, options=dict(variant.options))
    used = cuobjdump('-res-usage', made)
    return Code(made, *(int(re.search(rf'{what}:(\d+)', used)[1]) for what in ('REG', 'STACK')))


def cuobjdump(option: str, made: Any) -> str:
    """What NVIDIA's tool, which comes with Triton, shows of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'kernel.cubin')
        file.write_bytes(made.asm['cubin'])
        command = [triton.knobs.nvidia.cuobjdump.path, option, file]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shape_text(variant: Variant) -> str:
    """What tells variants of a kernel from each other."""
    constants = dict(variant.constants)
    words = {
        'HEADS': 'heads',
        'GROUP_HEADS': 'of them at once',
        'DIM': 'channels',
        'CHANNELS': 'channels at once',
        'QUERIES': 'queries',
        'SLOTS': 'slots',
        'OPEN_SLOTS': 'open',
        'LISTED': 'listed',
        'WINDOW': 'window',
    }
    parts = [f'{constants[name]} {word}' for name, word in words.items() if name in constants]
    flags = [
        name.removeprefix('HAS_').lower().replace('_', ' ')
        for name, value in constants.items()
        if value is True
    ]
    return ', '.join(parts + flags)


# --- Models ---------------------------------------------------------------------------------

MODELS = {name: backbones()[name] for name in ('Focal-T, detection windows', FAST, YARDSTICK)}
PASSES = {'forward': ['forward'], 'backward': ['backward'], 'both': ['forward', 'backward']}
DETECTION = (800, 1344)
SHAPES = (128, 128)  # of drawn shapes
IMAGES = {'mmdet': DETECTION, 'mmseg': (512, 512), 'mmpretrain': (224, 224)}
# What the documentation offers beside the configs, on top of Focal-T with detection windows.
OPTIONS: dict[str, dict[str, Any]] = {
    'shifted': dict(use_shift=True),
    'inside the map': dict(border='mask'),
    'inside the map, shifted': dict(border='mask', use_shift=True),
    'window of 12': dict(window_size=12),
    'window of 14': dict(window_size=14),
    'three levels': dict(focal_levels=(3, 3, 2, 2), focal_windows=(5, 5, 3, 3)),
    'one level': dict(focal_levels=1),
    'window only': dict(focal_levels=1, expand_sizes=0),
    **{
        f'heads of {dim} channels': dict(
            arch=dict(embed_dims=3 * dim, depths=(1, 1, 1, 1), num_heads=(3, 6, 12, 24))
        )
        for dim in (16, 48, 64)
    },
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


# Settings of a backbone that kernels depend on.
SETTINGS = {
    *('window_size', 'focal_levels', 'focal_windows', 'focal_stages', 'pool_method', 'border'),
    *('expand_sizes', 'expand_layer', 'use_shift', 'clamp_windows', 'top_k', 'stored_map_sizes'),
}


class Case(NamedTuple):
    """A backbone that trains: its settings with its type, images, and how many of them at once."""

    settings: dict[str, Any]
    size: tuple[int, int]
    batch: int

    def make(self) -> nn.Module:
        """The backbone, without memory."""
        settings = dict(self.settings)
        with torch.device('meta'):
            return getattr(models, settings.pop('type'))(**settings)


def case_of(settings: Mapping[str, Any], size: tuple[int, int], batch: int) -> Case:
    """What kernels depend on, with as few blocks as show it."""
    arch = settings.get('arch', 'tiny')
    arch = ARCH_SETTINGS[arch] if isinstance(arch, str) else arch
    alternate = settings.get('use_shift', False) or settings.get('expand_layer', 'all') != 'all'
    depths = (2 if alternate else 1,) * len(arch['depths'])
    kept = {name: value for name, value in settings.items() if name in SETTINGS}
    kind = settings['type'].rpartition('.')[2]
    return Case(dict(type=kind, arch=dict(arch, depths=depths), **kept), size, batch)


def shipped() -> dict[str, Case]:
    """Each different backbone of the configs, and of :data:`OPTIONS`."""
    cases: dict[str, Case] = {}
    # The lists of all models of a package, which mmengine reads for each base of a config.
    with patch.object(mmengine.config.utils, 'load', cache(mmengine.config.utils.load)):
        for path in sorted((REPOSITORY / 'configs').glob('[!_]*/*.py')):
            config = load_config(path)
            size = SHAPES if path.stem.endswith('_shapes') else IMAGES[config.default_scope]
            for _, settings in items_of(config.model):
                kind = settings.get('type', '') if isinstance(settings, dict) else ''
                if kind.rpartition('.')[2].startswith('FocalTransformer'):
                    case = case_of(settings.to_dict(), size, config.train_dataloader.batch_size)
                    if case not in cases.values():
                        cases[f'{path.parent.name}/{path.stem}'] = case
    first = dict(type='FocalTransformer', focal_windows=(15, 13, 9, 7))
    fast = dict(type='FocalTransformerFast')
    for name, options in OPTIONS.items():
        cases[f'Focal-T, {name}'] = case_of({**first, **options}, DETECTION, 2)
        if set(options) <= {'use_shift', 'window_size', 'arch'}:
            cases[f'Focal-fast-T, {name}'] = case_of({**fast, **options}, DETECTION, 2)
    return cases


def variants_of(
    cases: Mapping[str, Case],
    dtypes: Sequence[torch.dtype] = DTYPES,
    architectures: Sequence[int] = (90,),
) -> dict[Variant, list[str]]:
    """All kernels that training steps launch, and which of the cases do."""
    found: dict[Variant, list[str]] = {}
    for name, case in cases.items():
        for dtype, architecture in product(dtypes, architectures):
            step = count_step(case.make(), case.size, case.batch, dtype, architecture)
            for counts in step.values():
                for variant in counts.launches:
                    names = found.setdefault(variant, [])
                    names += [name] if name not in names else []
    return found


# --- Tables ---------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows as they come."""
    print('| ' + ' | '.join(header) + ' |\n|' + '---|' * len(header))
    for row in rows:
        print('| ' + ' | '.join(map(str, row)) + ' |', flush=True)


def totals(counts: Mapping[str, Counts], passes: Iterable[str]) -> tuple[int, int, int, int]:
    """Our kernels, operators, both together, and of these those of one kernel for certain."""
    ours = sum(counts[each].launches.total() for each in passes)
    operators = sum(counts[each].operators.total() for each in passes)
    return ours, operators, ours + operators, ours + sum(counts[each].single for each in passes)


def print_launches(size: tuple[int, int], dtype: torch.dtype) -> None:
    """What a training step of each backbone asks for, and its most frequent operators."""
    steps = {name: count_step(make(), size, dtype=dtype) for name, make in MODELS.items()}
    pixels = f'{size[0]}x{size[1]} pixels'
    print(f'\n## Launches\n\nA training step of two images of {pixels}, {str(dtype)[6:]}.\n')
    table(
        ('model', 'pass', 'our kernels', 'operators', 'together', 'of one kernel for certain'),
        (
            (name, title, *totals(counts, passes))
            for name, counts in steps.items()
            for title, passes in PASSES.items()
        ),
    )
    print('\nThe most frequent operators, forward and backward:\n')
    for name, counts in steps.items():
        most = sum((each.operators for each in counts.values()), Counter()).most_common(10)
        print(f'- {name}: ' + ', '.join(f'{count} `{op}`' for op, count in most))


def print_code(variants: Iterable[Variant]) -> None:
    """What variants are compiled to, sorted by kernel and shape."""

    def described(variant: Variant) -> tuple[str, str, str]:
        inputs = next((type_ for _, type_ in variant.types if type_.startswith('*')), '')
        return variant.name.removesuffix('_kernel'), shape_text(variant), inputs[1:]

    def order(variant: Variant) -> tuple:
        kernel, *_ = described(variant)
        return kernel, variant.constants, variant.types, variant.architecture

    def widths(code: Code, name: str) -> str:
        found = sorted(code.widths(name).items(), reverse=True)
        return ' '.join(f'{count}x{width}' for width, count in found) or '-'

    def rows() -> Iterator[tuple]:
        for variant in sorted(variants, key=order):
            code = code_of(variant)
            yield (
                *described(variant),
                f'sm_{variant.architecture}',
                len(code.instructions),
                ' '.join(map(str, code.loops)) or '-',
                code.registers,
                code.spilled_bytes,
                code.shared_bytes,
                code.exponentials,
                widths(code, 'LDG'),
                widths(code, 'LDGSTS'),
                widths(code, 'STG'),
            )

    print('\n## Machine code\n\nLoads and stores: how many times how many bytes.\n')
    header = (
        *('kernel', 'shape', 'inputs', 'for', 'instructions', 'of loops', 'registers'),
        *('spilled B', 'shared B', 'exp2', 'LDG', 'LDGSTS', 'STG'),
    )
    table(header, rows())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', choices=('launches', 'code'), help='one of the two parts')
    parser.add_argument(
        '--all',
        action='store_true',
        help='machine code of all that ships, for bfloat16, float16 and float32 and both GPUs; '
        'by default that of Focal-T with detection windows and the first stage of Focal-fast-T',
    )
    parser.add_argument('--architectures', type=int, nargs='+', help='such as 80 90 (default: 90)')
    args = parser.parse_args()
    versions = f'PyTorch {torch.__version__}, Triton {triton.__version__}'
    print('# Kernels, counted without a GPU\n\nBy `python -m tools.dev.count_kernels`.', end=' ')
    print(f'{time.strftime("%Y-%m-%d")}, {versions}.')
    if args.only != 'code':
        print_launches(DETECTION, torch.bfloat16)
    if args.only != 'launches':
        first = dict(type='FocalTransformer', focal_windows=(15, 13, 9, 7))
        fast = dict(type='FocalTransformerFast', out_indices=(0,))
        cases = {of['type']: Case(of, DETECTION, 2) for of in (first, fast)}
        cases, dtypes = (shipped(), DTYPES) if args.all else (cases, [torch.bfloat16])
        architectures = args.architectures or ([80, 90] if args.all else [90])
        print_code(variants_of(cases, dtypes, architectures))


if __name__ == '__main__':
    main()

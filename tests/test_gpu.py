"""What only a GPU shows: compiled kernels, streams, graphs, and training in mixed precision.

``tools/dev/gpu_check.sh`` runs this file, and the tests of others that belong on a GPU. Without a
CUDA device they are skipped.
"""

import json
import math
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mmfocal import FocalTransformer, FocalTransformerFast
from mmfocal.datasets import prepare_shapes
from mmfocal.export import BackboneGraph
from mmfocal.export.parity import SIZES, compare
from mmfocal.geometry import ClosestGeometry, FocalGeometry, FocalKeys, WindowGeometry
from mmfocal.geometry.closest import cached_offsets
from mmfocal.ops import focal_attention
from mmfocal.weights.safe_loading import load_checkpoint_file

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[1]
DEVICE = torch.device('cuda')


# --- Kernels --------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call of focal attention."""

    geometry: WindowGeometry
    map_size: tuple[int, int]
    heads: int
    head_dim: int = 32
    batch: int = 2


CASES = {
    'detection, stage 1': Case(FocalGeometry(focal_window=15), (50, 84), 3),
    'detection, stage 3': Case(FocalGeometry(focal_window=9), (50, 84), 12),
    'classification, stage 4': Case(FocalGeometry(focal_window=1), (7, 7), 24, batch=3),
    'odd map': Case(FocalGeometry(focal_window=7), (23, 37), 2, 16, batch=1),
    'shift': Case(FocalGeometry(focal_window=5, shift_size=3), (20, 30), 3),
    'mask, shift': Case(
        FocalGeometry(focal_window=5, shift_size=3, border='mask'), (19, 31), 2, 48
    ),
    'three levels': Case(FocalGeometry(focal_level=3, focal_window=5), (21, 28), 2, 64),
    'closest': Case(ClosestGeometry(top_k=128), (28, 35), 3),
    'closest, shift, three levels': Case(
        ClosestGeometry(window_size=4, shift_size=2, focal_level=3, top_k=70), (13, 18), 2, 16
    ),
    'window of 12': Case(
        FocalGeometry(window_size=12, expand_size=2, focal_window=3), (25, 31), 2
    ),
    'local': Case(FocalGeometry(expand_size=0, focal_level=1), (15, 15), 2, batch=1),
    # Windows whose queries may see nothing at all: only padding after the seam.
    'keyless': Case(
        FocalGeometry(window_size=4, expand_size=0, shift_size=2, focal_level=1, border='mask'),
        (9, 10),
        2,
        24,
    ),
}
STAGE_1 = CASES['detection, stage 1']

# Relative L2 error of forward and backward pass, in steps between numbers after 1. In 16 bits
# weights, outputs and gradients of scores are rounded once each, by at most half a step: together,
# if they are independent, by half a step; an H200 gives 0.4 in bfloat16 and 0.5 in float16. For
# float32 see test_lower_precision_follows_float64; an H200 gives 4.
STEPS = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 16}


class Inputs(NamedTuple):
    """What focal attention and its backward pass get."""

    qkv: Tensor
    keys: FocalKeys
    bias: Tensor
    grad_out: Tensor

    def double(self) -> 'Inputs':
        return Inputs(self.qkv.double(), self.keys, self.bias.double(), self.grad_out.double())


def random_inputs(case: Case, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    keys = case.geometry.keys(*case.map_size)
    row = case.heads, case.head_dim
    columns = keys.num_bias_columns(DEVICE)
    return Inputs(
        torch.randn(case.batch, keys.num_tokens, 3, *row, device=DEVICE).to(dtype),
        keys,
        torch.randn(case.heads, keys.num_queries, columns, device=DEVICE),
        torch.randn(case.batch, keys.num_outputs, *row, device=DEVICE).to(dtype),
    )


def out_and_grads(inputs: Inputs, backend: str = 'triton') -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the gradients of qkv and bias."""
    qkv, bias = (tensor.detach().requires_grad_() for tensor in (inputs.qkv, inputs.bias))
    out = focal_attention(qkv, inputs.keys, bias, backend=backend)
    return out.detach(), *torch.autograd.grad(out, (qkv, bias), inputs.grad_out)


def all_equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize('dtype', STEPS, ids=lambda dtype: str(dtype)[6:])


@each_dtype
@each_case
def test_kernels_follow_float64(case, dtype):
    inputs = random_inputs(case, dtype)
    wanted = out_and_grads(inputs.double(), 'reference')  # of inputs that are rounded already
    errors = [relative_error(*pair) for pair in zip(out_and_grads(inputs), wanted, strict=True)]
    assert max(errors) <= STEPS[dtype] * torch.finfo(dtype).eps, errors


@each_dtype
@each_case
def test_bits_are_the_same_whatever_scratch_memory_holds(case, dtype, monkeypatch):
    inputs = random_inputs(case, dtype)
    expected = out_and_grads(inputs)
    assert all_equal(out_and_grads(inputs), expected)

    made = []

    def poisoned(make):
        def make_poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            made.append(tensor.shape)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return make_poisoned

    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, 'empty_like', poisoned(torch.empty_like))
    monkeypatch.setattr(torch, 'empty', poisoned(torch.empty))
    assert all_equal(out_and_grads(inputs), expected)
    assert len(made) >= 3


def test_auto_takes_the_kernels():
    inputs = random_inputs(STAGE_1)
    chosen, other = (out_and_grads(inputs, name) for name in ('auto', 'gather_sdpa'))
    assert all_equal(chosen, out_and_grads(inputs, 'triton'))
    assert not torch.equal(chosen[0], other[0])


def test_qkv_need_not_be_aligned():
    inputs = random_inputs(STAGE_1)
    expected = out_and_grads(inputs)
    memory = inputs.qkv.new_empty(inputs.qkv.numel() + 1)
    unaligned = memory[1:].view_as(inputs.qkv).copy_(inputs.qkv)
    assert unaligned.is_contiguous() and unaligned.data_ptr() % 16
    assert all_equal(out_and_grads(inputs._replace(qkv=unaligned)), expected)


def test_gradient_of_the_output_may_be_expanded():
    inputs = random_inputs(STAGE_1)
    expanded = inputs.grad_out[:, :1].expand_as(inputs.grad_out)
    expected = out_and_grads(inputs._replace(grad_out=expanded.contiguous()))
    assert all_equal(out_and_grads(inputs._replace(grad_out=expanded)), expected)


def test_tables_made_in_inference_mode_serve_training():
    inputs = random_inputs(STAGE_1._replace(map_size=(29, 38)))  # a size of only this test
    with torch.inference_mode():
        out = focal_attention(inputs.qkv, inputs.keys, inputs.bias, backend='triton')
    trained = out_and_grads(inputs)
    assert torch.equal(trained[0], out)
    assert all(grad.isfinite().all() for grad in trained)


def test_offsets_may_pass_2_to_the_31():
    case = STAGE_1._replace(map_size=(200, 336), batch=1)
    one = random_inputs(case)
    count = 2**31 // one.qkv.numel() + 5
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < 30:
        pytest.skip(f'needs 30 GiB of GPU memory, and {free:.0f} are free')
    many = one._replace(
        qkv=one.qkv.expand(count, -1, -1, -1, -1).contiguous(),
        grad_out=one.grad_out.expand(count, -1, -1, -1),
    )
    assert many.qkv.numel() > 2**31
    alone, together = out_and_grads(one), out_and_grads(many)
    for image in (0, -1):
        assert torch.equal(together[0][image], alone[0][0])
        assert torch.equal(together[1][image], alone[1][0])
    assert relative_error(together[2] / count, alone[2]) < 1e-5  # a sum in float32


# --- Streams and graphs ---------------------------------------------------------------------


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises a RuntimeError."""
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def in_a_process_of_its_own(function: Callable[[], bool]) -> bool:
    """What the function returns. An error of CUDA would take all later tests along."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(function).result()


def captured(inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph of forward and backward pass, and the tensors that it writes to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out_and_grads(inputs)  # compiles the kernels and makes the tables
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = out_and_grads(inputs)
    return graph, results


def test_side_stream_gives_the_same_bits():
    inputs = random_inputs(STAGE_1)
    expected = out_and_grads(inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = out_and_grads(inputs)
    torch.cuda.synchronize()
    assert all_equal(got, expected)


def test_host_never_waits_for_the_op():
    inputs = random_inputs(STAGE_1)
    out_and_grads(inputs)  # compiles the kernels and makes the tables
    with waiting_is_an_error():
        out_and_grads(inputs)


def test_host_never_waits_in_a_training_step():
    model = FocalTransformer('tiny', focal_windows=(15, 13, 9, 7)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    image = torch.randn(2, 3, 224, 320, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            outputs = model(image)
        sum(out.float().square().mean() for out in outputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with waiting_is_an_error():
        step()


def test_graph_follows_its_inputs():
    inputs, others = random_inputs(STAGE_1), random_inputs(STAGE_1)
    graph, results = captured(inputs)
    for name in ('qkv', 'bias', 'grad_out'):
        getattr(inputs, name).copy_(getattr(others, name))
    graph.replay()
    torch.cuda.synchronize()
    assert all_equal(results, out_and_grads(inputs))


def replay_after_many_sizes() -> bool:
    """Whether a graph gives the same after more map sizes than tables are kept of."""
    inputs = random_inputs(STAGE_1)
    expected = out_and_grads(inputs)
    graph, results = captured(inputs)
    for height in range(280, 350):  # large ones: 0.7 GB of tables
        others = random_inputs(STAGE_1._replace(map_size=(height, 480), batch=1))
        focal_attention(others.qkv, others.keys, others.bias, backend='triton')
    torch.cuda.synchronize()
    # Memory that was given back is taken again, blocks of all sizes, and overwritten.
    sizes = [2**bits for bits in range(7, 21) for _ in range(40)]
    taken = [torch.full((size,), 7, dtype=torch.int32, device=DEVICE) for size in sizes]
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return len(taken) == len(sizes) and all_equal(results, expected)


def test_graph_outlives_the_cache_of_tables():
    assert in_a_process_of_its_own(replay_after_many_sizes)


def replay_model_after_many_sizes() -> bool:
    """The same for a model whose position bias reads tables, too, of which few are kept."""
    cached_offsets.limit = 2**14
    arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
    model = FocalTransformerFast(arch, top_k=20, drop_path_rate=0.0).to(DEVICE).eval()
    image = torch.randn(1, 3, 64, 96, device=DEVICE)
    with torch.no_grad():
        expected = model(image)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(image)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = model(image)
        for height in range(100, 180, 4):  # four maps each
            model(torch.randn(1, 3, height, 96, device=DEVICE))
    torch.cuda.synchronize()
    sizes = [2**bits for bits in range(5, 16) for _ in range(40)]
    taken = [torch.full((size,), 7, dtype=torch.int32, device=DEVICE) for size in sizes]
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return len(taken) == len(sizes) and all_equal(results, expected)


def test_graph_of_a_model_outlives_the_cache_of_tables():
    assert in_a_process_of_its_own(replay_model_after_many_sizes)


def tables_from_a_busy_stream() -> bool:
    """Whether a stream gets tables whole although the one that makes them is far behind."""
    sizes = (27, 34), (34, 27)
    warm, inputs = (random_inputs(STAGE_1._replace(map_size=size)) for size in sizes)
    out_and_grads(warm)  # the same kernels, so that nothing is compiled below
    torch.cuda.synchronize()
    busy = torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(2**31)  # a second
        kept = out_and_grads(inputs)
    got = out_and_grads(inputs)
    torch.cuda.synchronize()
    expected = out_and_grads(inputs)
    return all_equal(got, expected) and all_equal(kept, expected)


def test_tables_of_another_stream_are_waited_for():
    assert in_a_process_of_its_own(tables_from_a_busy_stream)


# --- Models ---------------------------------------------------------------------------------

BACKBONES = {'first version': FocalTransformer, 'second version': FocalTransformerFast}
EPS = torch.finfo(torch.bfloat16).eps
each_backbone = pytest.mark.parametrize('backbone', BACKBONES.values(), ids=BACKBONES)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def made(backbone: type[nn.Module], backend: str, arch: str | dict = 'tiny', **settings):
    """A model; all of an arch have the same weights."""
    torch.manual_seed(0)
    settings |= dict(drop_path_rate=0.0, attention_backend=backend)
    return backbone(arch, **settings).to(DEVICE)


def training_step(model: nn.Module, image: Tensor, mixed: bool = True) -> dict[str, Tensor]:
    """Maps and gradients of all parameters by name, in bfloat16 or in float32."""
    model.zero_grad()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=mixed):
        outputs = model(image)
    # Norms are at the end: for a plain sum, all that lies before them would have no gradient.
    torch.manual_seed(1)
    sum(
        (out.float() * torch.randn_like(out, dtype=torch.float32)).sum() for out in outputs
    ).backward()
    found = {f'map {i}': out.detach() for i, out in enumerate(outputs)}
    return found | {name: p.grad for name, p in model.named_parameters()}


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name; those of gradients that sum what almost cancels count together.

    That are biases of poolings, single numbers, and the layers of the MLPs that make the second
    version's position bias: what they add to all scores of a query, a softmax takes out again. Of
    a single one the error is a matter of chance.
    """

    def joined_with(name: str) -> str:
        module, is_one_of_mlps, _ = name.partition('.mlps.')
        return module if is_one_of_mlps else 'poolings' if exact[name].numel() == 1 else name

    names: dict[str, list[str]] = {}
    for name in exact:
        names.setdefault(joined_with(name), []).append(name)
    return {
        key: relative_error(*(torch.cat([of[n].flatten() for n in each]) for of in (found, exact)))
        for key, each in names.items()
    }


@each_backbone
def test_mixed_precision_reaches_every_parameter(backbone):
    found = training_step(made(backbone, 'auto'), torch.randn(2, 3, 96, 128, device=DEVICE))
    assert not [name for name, value in found.items() if not value.isfinite().all()]
    assert not [name for name, value in found.items() if not value.any()]


@each_backbone
def test_mixed_precision_gives_the_same_bits_again(backbone, deterministic):
    model, image = made(backbone, 'auto'), torch.randn(2, 3, 96, 128, device=DEVICE)
    first, second = training_step(model, image), training_step(model, image)
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@each_backbone
def test_mixed_precision_is_as_close_to_float32_as_the_reference(backbone):
    reference, image = made(backbone, 'reference'), torch.randn(2, 3, 96, 128, device=DEVICE)
    exact = training_step(reference, image, mixed=False)
    others = errors(training_step(reference, image), exact)
    for name, error in errors(training_step(made(backbone, 'auto'), image), exact).items():
        # Of some gradients almost nothing is left of large terms, whatever computes them.
        assert error <= 4 * EPS + 2 * others[name], (name, error, others[name])
        assert error <= 4 * EPS or not name.startswith('map'), (name, error)


@each_backbone
def test_compiled_blocks_give_what_eager_ones_do(backbone):
    arch = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    image = torch.randn(2, 3, 96, 128, device=DEVICE)
    exact = training_step(made(backbone, 'reference', arch), image, mixed=False)
    of_eager = errors(training_step(made(backbone, 'auto', arch), image), exact)
    model = made(backbone, 'auto', arch)
    model.compile_blocks(fullgraph=True)
    for name, error in errors(training_step(model, image), exact).items():
        assert error <= 4 * EPS + 2 * of_eager[name], (name, error, of_eager[name])


@each_backbone
def test_compiled_blocks_give_the_same_bits_again(backbone, deterministic):
    arch = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    model, image = made(backbone, 'auto', arch), torch.randn(2, 3, 96, 128, device=DEVICE)
    model.compile_blocks(fullgraph=True)
    first, second = training_step(model, image), training_step(model, image)
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_model_on_the_gpu_is_exported():
    arch = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    model = made(FocalTransformer, 'auto', arch).eval()
    graph = BackboneGraph(model)
    parity = compare(graph, model, lambda image: [out.numpy() for out in graph(image)], SIZES[:1])
    assert max(parity.worst.values()) < 1e-3
    assert next(model.parameters()).is_cuda


# --- Tools ----------------------------------------------------------------------------------

ITERATIONS = 24
MIXED, REPEATABLE = ('--amp',), ('--amp', '--deterministic', '--seed', '0')
TOO_FAST = (
    'optim_wrapper.optimizer.lr=1e30',
    'param_scheduler.0.start_factor=1.0',
    'optim_wrapper.clip_grad=None',
)
one_worker = pytest.mark.xdist_group('training')  # for a fixture that takes a minute


class Run(NamedTuple):
    """A run of tools/train.py that has ended."""

    folder: Path
    status: int
    output: str

    def weights(self, iteration: int = ITERATIONS) -> dict[str, Tensor]:
        return load_checkpoint_file(self.folder / f'iter_{iteration}.pth')['state_dict']


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Iterator[dict[str, Run]]:
    """Short runs at once, each a process; and one that resumes from the middle of another."""
    if find_spec('mmdet') is None:
        pytest.skip('MMDetection is not installed')
    prepare_shapes()
    folder = tmp_path_factory.mktemp('runs')
    processes: dict[str, subprocess.Popen] = {}

    def start(name: str, *options: str | Path, settings: tuple[str, ...] = ()) -> None:
        command = [sys.executable, ROOT / 'tools/train.py', 'focal_maskrcnn_shapes']
        command += ['--no-data-check', '--work-dir', folder / name, *options, '--cfg-options']
        command += [f'train_cfg.max_iters={ITERATIONS}', f'train_cfg.val_interval={ITERATIONS}']
        command += [f'default_hooks.checkpoint.interval={ITERATIONS // 2}']
        command += ['default_hooks.logger.interval=4', *settings]
        with (folder / f'{name}.log').open('w') as log:
            processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def ended(name: str) -> Run:
        status = processes[name].wait(timeout=600)
        return Run(folder / name, status, (folder / f'{name}.log').read_text())

    try:
        start('repeatable', *REPEATABLE)
        start('repeated', *REPEATABLE)
        start('mixed', *MIXED)
        start('bfloat16', '--precision', 'bf16')
        start('diverging', *MIXED, settings=TOO_FAST)
        middle = ended('repeatable').folder / f'iter_{ITERATIONS // 2}.pth'
        start('resumed', *REPEATABLE, '--resume', middle)
        yield {name: ended(name) for name in processes}
    finally:
        for process in processes.values():
            process.kill()


@one_worker
@pytest.mark.parametrize('name', ['mixed', 'bfloat16', 'repeatable'])
def test_training_learns_in_16_bits(runs, name):
    run = runs[name]
    assert run.status == 0, run.output[-3000:]
    assert "Focal attention runs on backend 'triton'" in run.output
    (scalars,) = run.folder.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.open()]
    losses = [{k: v for k, v in row.items() if 'loss' in k} for row in logged if 'loss' in row]
    assert len(losses) == ITERATIONS // 4
    assert all(math.isfinite(value) for row in losses for value in row.values())
    assert losses[-1]['loss'] < 0.95 * losses[0]['loss']
    before, after = run.weights(ITERATIONS // 2), run.weights()
    assert not [n for n, v in after.items() if n.endswith('weight') and torch.equal(v, before[n])]


@one_worker
@pytest.mark.parametrize('name', ['repeated', 'resumed'])
def test_deterministic_training_ends_with_the_same_bits(runs, name):
    assert runs[name].status == 0, runs[name].output[-3000:]
    expected, got = runs['repeatable'].weights(), runs[name].weights()
    assert got.keys() == expected.keys()
    assert not [key for key, value in expected.items() if not torch.equal(got[key], value)]


@one_worker
def test_loss_that_is_not_finite_ends_training_with_its_layer(runs):
    run = runs['diverging']
    assert run.status == 2, run.output[-3000:]
    assert re.search(r'Training stopped in iteration \d+: the loss is (nan|-?inf)', run.output)
    assert re.search(r'backbone\.[\w.]+ \(\w+\)', run.output)
    assert 'Traceback' not in run.output
    assert not list(run.folder.glob('*.pth'))


def test_doctor_names_the_gpu_and_runs_a_kernel():
    command = [sys.executable, ROOT / 'tools/doctor.py']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.cuda.get_device_name() in done.stdout
    assert re.search(r'^Triton +kernels run$', done.stdout, re.MULTILINE)

"""Files of PaddlePaddle: what PaddleViT publishes loads without it, and nothing in them is run."""

import io
import json
import os
import pickle
import pickletools
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import CheckpointLoader
from test_pretrained import ARCH, authors_file
from test_safe_loading import Call, arrays_of, key, restored_schemes, within_limits  # noqa: F401

from mmfocal import FocalTransformer
from mmfocal.engine import CheckpointError, install_safe_loading, load_checkpoint_file
from mmfocal.weights import load_pretrained, paddle
from mmfocal.weights.authors import from_authors
from mmfocal.weights.safe_loading import names_weights

NAMES = 'StructuredToParameterName@@'
GOLDEN = sorted(Path(os.environ.get('MMFOCAL_GOLDEN', '')).glob('paddlevit/*.pdparams'))


def as_paddle(state):
    """Arrays by the authors' names with linear weights turned, as PaddleViT holds them."""
    linear = re.compile(r'(.*\.)?(qkv|proj|fc[12]|pool_layers\.\d+|head)\.weight')
    return {
        name: value.numpy().T.copy()
        if linear.fullmatch(name) and value.dim() == 2
        else value.numpy()
        for name, value in state.items()
    }


def saved(path, content, protocol=4, with_names=True):
    """As ``paddle.save`` writes a state dict."""
    if with_names:
        content = {**content, NAMES: {name: f'linear_{i}.w_0' for i, name in enumerate(content)}}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


class Named:
    """A tensor as PaddlePaddle 2.1 and newer pickle it in other containers than state dicts."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return tuple, (('linear_0.w_0', self.array),)


# --- What PaddlePaddle writes -------------------------------------------------------------------


@pytest.mark.parametrize('with_names', [True, False])
@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_file_loads_as_the_authors_own(tmp_path, protocol, with_names):
    state = authors_file()['model']
    path = saved(tmp_path / 'focal.pdparams', as_paddle(state), protocol, with_names)
    assert NAMES not in load_checkpoint_file(path)
    ours, want = FocalTransformer(ARCH), FocalTransformer(ARCH)
    torch.manual_seed(0)  # the ring of stage 4 begins as new
    report = load_pretrained(ours, str(path))
    torch.manual_seed(0)
    expected = load_pretrained(want, {'model': state})
    assert (report.loaded, report.left_out) == (expected.loaded, expected.left_out)
    assert "the authors' Focal Transformer" in str(report)
    for name, value in want.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
def test_logits_are_those_of_paddlevit(path):
    arrays = np.load(path.with_name(f'{path.stem}_out.npz'))
    weights = load_checkpoint_file(path)
    settings, _ = from_authors(json.loads(str(arrays['config'])), weights, 1)
    model = FocalTransformer(**settings).eval()
    load_pretrained(model, str(path))
    with torch.no_grad():
        last = model(torch.from_numpy(arrays['input']))[-1].flatten(2).transpose(1, 2)
    normed = F.layer_norm(last, last.shape[-1:], weights['norm.weight'], weights['norm.bias'])
    logits = F.linear(normed.mean(1), weights['head.weight'], weights['head.bias'])
    assert float((logits - torch.from_numpy(arrays['logits'])).abs().max()) < 1e-5


def test_every_way_to_name_a_file_takes_it(tmp_path):
    path = saved(tmp_path / 'focal.pdparams', as_paddle(authors_file()['model']))
    want = FocalTransformer(ARCH)
    load_pretrained(want, authors_file())
    settings = dict(type='Pretrained', checkpoint=str(path))
    model = FocalTransformer(ARCH, init_cfg=settings)
    model.init_weights()
    name = 'stages.2.blocks.0.attn.proj.weight'  # square: nothing but the file says how it lies
    assert torch.equal(model.state_dict()[name], want.state_dict()[name])
    install_safe_loading()
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert torch.equal(
        loaded[name.replace('stages', 'layers')],
        authors_file()['model'][name.replace('stages', 'layers')],
    )
    assert names_weights(path) and names_weights('https://a.b/focal.pdparams?download=1')


@pytest.mark.parametrize('protocol', [2, 4])
def test_tensors_in_other_containers_load(tmp_path, protocol):
    arrays = as_paddle(authors_file()['model'])
    named = OrderedDict((name, Named(array)) for name, array in arrays.items())
    path = saved(
        tmp_path / 'latest.pdparams',
        dict(epoch=3, model=named, lr=[1e-3, np.float32(0.5), None, True]),
        protocol,
        with_names=False,
    )
    assert load_checkpoint_file(path)['epoch'] == 3
    model, want = FocalTransformer(ARCH), FocalTransformer(ARCH)
    load_pretrained(model, str(path), ring=0)
    load_pretrained(want, authors_file(), ring=0)
    for name, value in want.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_arrays_that_were_cut_up_are_joined(tmp_path):
    """Protocols 2 and 3 cut those of 1 GiB and more."""
    whole = np.arange(6, dtype='f4').reshape(3, 2)
    cut = {'a.weight': dict(OriginShape=(3, 2), slices=['a.weight@@.0', 'a.weight@@.1'])}
    flat = whole.flatten()
    content = {'a.weight@@.0': flat[:4], 'a.weight@@.1': flat[4:], NAMES: {'a.weight': 'fc.w_0'}}
    content['UnpackBigParamInfor@@'] = cut
    path = saved(tmp_path / 'a.pdparams', content, 2, with_names=False)
    loaded = load_checkpoint_file(path)
    assert list(loaded) == ['a.weight']
    assert torch.equal(loaded['a.weight'], torch.from_numpy(whole.T.copy()))


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(
    'array, expected',
    [
        (np.array([1, 2.5], 'f2'), torch.tensor([1, 2.5], dtype=torch.float16)),
        (np.array([1, 2.5], '>f4'), torch.tensor([1, 2.5])),
        (np.asfortranarray(np.arange(6.0).reshape(2, 3)), torch.arange(6.0).double().view(2, 3)),
        (np.array([0x3FC0, 0xC000], 'u2'), torch.tensor([1.5, -2], dtype=torch.bfloat16)),
        (np.array(7), torch.tensor(7)),
        (np.zeros((0, 4), 'f4'), torch.zeros(0, 4)),
        (np.array([True, False]), torch.tensor([True, False])),
    ],
    ids=['half', 'big-endian', 'columns', 'bfloat16', 'number', 'nothing', 'flags'],
)
def test_types_of_arrays(tmp_path, array, expected, protocol):
    loaded = load_checkpoint_file(saved(tmp_path / 'a.pdparams', dict(a=array), protocol))
    assert loaded['a'].dtype == expected.dtype and torch.equal(loaded['a'], expected)


def test_only_linear_weights_are_turned(tmp_path):
    content = {
        'head.weight': np.zeros((2, 3), 'f4'),
        'attn.relative_position_bias_table': np.zeros((2, 3), 'f4'),
        'attn.relative_position_bias_table_to_windows.0': np.zeros((2, 3), 'f4'),
        'head.bias': np.zeros(3, 'f4'),
        'proj.weight': np.zeros((2, 3, 4, 4), 'f4'),
    }
    loaded = load_checkpoint_file(saved(tmp_path / 'a.pdparams', content))
    assert [tuple(value.shape) for value in loaded.values()] == [
        *((3, 2), (2, 3), (2, 3), (3,)),
        (2, 3, 4, 4),
    ]


# --- Under other names --------------------------------------------------------------------------


def test_another_suffix_is_taken_if_the_file_says_whose_it_is(tmp_path):
    arrays = dict(weight=np.zeros((2, 3), 'f4'))
    renamed = saved(tmp_path / 'a.pth', arrays)
    assert load_checkpoint_file(renamed)['weight'].shape == (3, 2)
    silent = saved(tmp_path / 'b.pth', arrays, with_names=False)
    with pytest.raises(CheckpointError, match=r'does not say .* let its name end in \.pdparams'):
        load_checkpoint_file(silent)
    torch.save(dict(weight=torch.zeros(3, 2)), tmp_path / 'c.pdparams')
    with pytest.raises(CheckpointError, match=r"c\.pdparams is PyTorch's archive .* end in \.pth"):
        load_checkpoint_file(tmp_path / 'c.pdparams')


def test_paddles_orientation_in_a_file_of_pytorch_is_named():
    turned = {
        name: torch.from_numpy(array) for name, array in as_paddle(authors_file()['model']).items()
    }
    with pytest.raises(
        CheckpointError, match=r'qkv\.weight is \(8, 24\), not \(24, 8\).*\.pdparams'
    ):
        load_pretrained(FocalTransformer(ARCH), turned)


@pytest.mark.parametrize('name', ['a.pdparams', 'a.pth'])
@pytest.mark.parametrize('start', ['<html>', '\n<!DOCTYPE html>', '\ufeff<?xml version="1.0"?>'])
def test_web_pages_are_told(tmp_path, name, start):
    (tmp_path / name).write_text(f'{start}Google Drive cannot scan this file for viruses')
    with pytest.raises(CheckpointError, match='is a web page and no checkpoint'):
        load_checkpoint_file(tmp_path / name)


# --- What attackers write -----------------------------------------------------------------------


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def calls(marker):
    """Pickles that would call, or otherwise reach, what is no array, by name."""
    run = f'touch {marker}'
    array = pickle.dumps(np.zeros(2), 4)[11:-1]
    system = text('posix') + text('system') + b'\x93'
    return {
        'protocol 0': pickle.dumps(Call(os.system, run), 0),
        'protocol 2': pickle.dumps({'a': Call(os.system, run)}, 2),
        'protocol 4': pickle.dumps({'a': Call(os.system, run)}, 4),
        'eval': pickle.dumps({'a': Call(eval, f'open({str(marker)!r}, "w")')}, 4),
        'in a key': pickle.dumps({Call(os.system, run): 1}, 4),
        'in a pair': pickle.dumps({'a': Named(Call(os.system, run))}, 4),
        'state of an array': pickle.dumps(
            Call(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b'b', state=Call(os.system, run)),
            4,
        ),
        'INST': b'\x80\x02}' + text('a') + b'(' + text(run) + b'iposix\nsystem\ns.',
        'OBJ': b'\x80\x02}' + text('a') + b'(cposix\nsystem\n' + text(run) + b'os.',
        'NEWOBJ': b'\x80\x02}' + text('a') + b'cnumpy\nndarray\n)\x81s.',
        'EXT': b'\x80\x02}' + text('a') + b'\x82\x01s.',
        'persistent id': b'\x80\x02}' + text('a') + text(run) + b'Qs.',
        'STACK_GLOBAL': b'\x80\x04}' + text('a') + system + text(run) + b'\x85Rs.',
        'dotted name': b'\x80\x04}'
        + text('a')
        + text('numpy')
        + text('ndarray.tofile')
        + b'\x93s.',
        'getattr': pickle.dumps({'a': Call(getattr, np.zeros(2), 'tofile')}, 4),
        'function': b'\x80\x02}' + text('a') + b'cnumpy\ndtype\ns.',
        'attributes of a function': b'\x80\x02}'
        + text('a')
        + b'c_codecs\nencode\n}'
        + text('x')
        + b'K\x01sbs.',
        'attributes by slots': b'\x80\x02}'
        + text('a')
        + b'c_codecs\nencode\nN}'
        + text('__defaults__')
        + b'K\x01s\x86bs.',
        'codec': b'\x80\x02}'
        + text('a')
        + b'c_codecs\nencode\n'
        + text('a')
        + text('zip')
        + b'\x86Rs.',
        'tuple of tuples': pickle.dumps({'a': Call(tuple, ((1, 2),))}, 4),
        'bytearray': pickle.dumps({'a': Call(bytearray, 1 << 33)}, 4),
        'protocol 5': pickle.dumps({'a': np.zeros(2)}, 5),
        'out of band': pickle.dumps({'a': np.zeros(2)}, 5, buffer_callback=[].append),
        'bytes that change': pickle.dumps({'a': bytearray(b'abc')}, 5),
        'set': pickle.dumps({'a': {1, 2}}, 4),
        'objects': pickle.dumps({'a': np.array([1, 'x'], dtype=object)}, 4),
        'records': pickle.dumps({'a': np.zeros(2, [('a', 'f4')])}, 4),
        'texts': pickle.dumps({'a': np.array(['x'])}, 4),
        'long double': pickle.dumps({'a': np.zeros(2, 'g')}, 4),
        'more elements than bytes': pickle.dumps({'a': np.zeros(3)}, 4).replace(
            b'K\x03\x85', b'J\xff\xff\xff\x7f\x85'
        ),
        'array without content': b'\x80\x02}' + text('a') + b'cnumpy\nndarray\n)Rs.',
        'two pickles': pickle.dumps({'a': 1}, 4) + pickle.dumps(Call(os.system, run), 4),
        'frame beyond the end': b'\x80\x04\x95' + b'\xff' * 7 + b'\x7f' + array + b'.',
        'bytes beyond the end': b'\x80\x04}' + text('a') + b'\x8e' + b'\xff' * 7 + b'\x7fab',
        'memo far away': b'\x80\x02}r\xff\xff\xff\x7f.',
        'cut off': pickle.dumps({'a': np.zeros(9)}, 4)[:-20],
        'holds itself': b'\x80\x02}q\x00' + text('a') + b'h\x00s.',
        'parts used twice': pickle.dumps(
            {
                'p': np.zeros(4),
                'UnpackBigParamInfor@@': {'a': dict(OriginShape=(8,), slices=['p', 'p'])},
            },
            4,
        ),
        'parts that are no dict': pickle.dumps({'UnpackBigParamInfor@@': {'a': 1}}, 4),
        'Python 2': b'\x80\x02}U\x01aU\x01bs.',
    }


@pytest.mark.parametrize('kind', calls('marker'))
def test_hostile_files_are_refused_and_not_run(tmp_path, kind):
    marker = tmp_path / 'ran'
    path = tmp_path / 'evil.pdparams'
    path.write_bytes(calls(marker)[kind])
    with pytest.raises(CheckpointError, match=r'evil\.pdparams (was refused|could not be read)'):
        load_checkpoint_file(path)
    assert not marker.exists()
    # What stands in for functions stays as it is.
    assert not vars(paddle._encode) and paddle._encode.__defaults__ is None


def test_parts_are_counted_before_they_are_joined(tmp_path):
    part = np.zeros(1 << 20, 'f4')  # 4 MiB, in the file once
    content = {f'p{i}': part for i in range(1000)}
    content['UnpackBigParamInfor@@'] = {'a': dict(OriginShape=(-1,), slices=[*content])}
    path = tmp_path / 'evil.pdparams'
    path.write_bytes(pickle.dumps(content, 2))
    assert within_limits(lambda: load_checkpoint_file(path)) == 10
    with pytest.raises(CheckpointError, match='with a it holds over 10 times the size'):
        load_checkpoint_file(path)


def test_messages_are_short_however_long_a_type_is(tmp_path):
    code = 'f4,' * 2000
    program = b'\x80\x02}cnumpy\ndtype\nX' + struct.pack('<I', len(code)) + code.encode()
    path = tmp_path / 'evil.pdparams'
    path.write_bytes(program + b'\x85R.')
    with pytest.raises(CheckpointError, match='which are no numbers') as raised:
        load_checkpoint_file(path)
    assert len(str(raised.value)) < 1000


def test_refusal_names_what_was_asked_for(tmp_path):
    path = tmp_path / 'evil.pdparams'
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({'a': Call(os.system, 'true')}, protocol))
        with pytest.raises(CheckpointError, match=r"it asks for '\w+\.system'"):
            load_checkpoint_file(path)
    kinds = dict(INST='INST', OBJ='OBJ', NEWOBJ='NEWOBJ', EXT='EXT1')
    kinds.update({'persistent id': 'BINPERSID', 'protocol 5': 'BYTEARRAY8'})
    for kind, opcode in kinds.items():
        path.write_bytes(calls('ran')[kind])
        with pytest.raises(CheckpointError, match=f'pickle opcode {opcode}'):
            load_checkpoint_file(path)


def repeated(opcode, count):
    """A dict that holds twice the container before, so many times."""
    twice = b''.join(b'q%ch%c%s' % (number, number, opcode) for number in range(count))
    return b'\x80\x02}' + text('a') + b'K\x01' + twice + b's.'


def many_names(data, count):
    """One array under many names."""
    array = np.frombuffer(data, 'u1').reshape(2, -1)
    return pickle.dumps({f'{i}.weight': array for i in range(count)}, 4)


@pytest.mark.parametrize(
    'content, status',
    [
        (lambda: repeated(b'\x86', 60), 0),
        (key, 10),
        (lambda: b'\x80\x02}r\xff\xff\xff\x7f.', 10),  # room for 2 ** 31 parts
        (lambda: b'\x80\x02}' + text('a') + b']' * 500 + b'a' * 499 + b's.', 10),
        (lambda: pickle.dumps(dict(enumerate(arrays_of(bytes(50_000), 5))), 4), 0),
        (lambda: pickle.dumps(dict(enumerate(arrays_of(bytes(50_000), 1000))), 4), 10),
        (lambda: pickle.dumps(dict(enumerate(arrays_of(bytes(50_000), 1000))), 2), 10),
        (lambda: many_names(bytes(50_000), 5), 0),
        (lambda: many_names(bytes(50_000), 5000), 10),
    ],
)
def test_reading_takes_no_more_than_the_file_does(tmp_path, content, status):
    path = tmp_path / 'large.pdparams'
    path.write_bytes(content())
    assert path.stat().st_size < 1 << 18
    assert within_limits(lambda: load_checkpoint_file(path)) == status


def test_changed_bytes_are_read_or_refused(tmp_path):
    """Arrays have no checksum: what differs in them cannot be seen, only in what makes them."""
    good = saved(tmp_path / 'a.pdparams', dict(a=np.zeros((2, 3), 'f4')), 2).read_bytes()
    path, refused = tmp_path / 'b.pdparams', 0
    for bit in range(0, 8 * len(good), 7):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            load_checkpoint_file(path)
        except CheckpointError:
            refused += 1
    assert refused > len(good) / 4
    for end in range(0, len(good), 5):
        path.write_bytes(good[:end])
        with pytest.raises(CheckpointError, match=r'cut off or damaged|was refused'):
            load_checkpoint_file(path)


def test_published_form_has_no_other_opcodes(tmp_path):
    """What picklers write for arrays and containers is in the list."""
    written = set()
    for protocol in (2, 3, 4):
        content = dict(
            a=np.zeros((2, 2, 2, 2)), b=[1, 300, 70_000, 2**40, 0.5, None, True, False, ()]
        )
        program = pickle.dumps({**content, 'c': [2], 'd': {1: b'x' * 300}}, protocol)
        written |= {opcode.name for opcode, *_ in pickletools.genops(io.BytesIO(program))}
    assert written <= paddle._OPCODES

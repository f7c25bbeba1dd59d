"""Label Studio's JSON and JSON-MIN: shapes in percent, brushes, several annotators, refusals."""

import base64
import itertools
import json
import math

import drawn_shapes
import numpy as np
import pytest
from drawn_shapes import bitmap, blob, found, known, read, refusal, single

from mmfocal.datasets.formats import label_studio
from mmfocal.datasets.formats.content import Folder

SIZE = dict(original_width=128, original_height=128)
BOX = dict(x=10, y=20, width=30, height=40, rotation=0, rectanglelabels=['cat'])
BOX_IN_PIXELS = pytest.approx((12.8, 25.6, 38.4, 51.2))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Those of one outline, since Label Studio does not join several."""
    return [
        each._replace(shapes=[shape for shape in each.shapes if len(shape.polygons) == 1])
        for each in drawn_shapes.draw(tmp_path_factory.mktemp('drawn'))
    ]


def region(kind, value, **more):
    names = dict(id='aB3', from_name='label', to_name='image', type=kind, origin='manual')
    return names | SIZE | dict(image_rotation=0, value=value) | more


def box(**more):
    return region('rectanglelabels', BOX | more)


def polygon(points, label='cat'):
    return region('polygonlabels', dict(points=points, closed=True, polygonlabels=[label]))


def regions_of(picture):
    return [
        polygon((np.reshape(shape.polygons[0], (-1, 2)) / 128 * 100).tolist(), shape.label)
        for shape in picture.shapes
    ]


def annotation(*results, **more):
    times = dict(created_at='2024-01-02T10:00:00.0Z', updated_at='2024-01-02T10:00:00.0Z')
    state = dict(id=1, completed_by=1, was_cancelled=False, ground_truth=False)
    return state | times | dict(result=list(results)) | more


def task(image, *annotations, **more):
    whole = dict(id=1, annotations=list(annotations), drafts=[], predictions=[])
    return whole | dict(data=dict(image=image), project=1) | more


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def one(pictures, tmp_path):
    """Writes a folder of one image with a task."""

    def write_one(*results, **more):
        pictures[0].copy(tmp_path)
        first = annotation(*results)
        write(tmp_path / 'export.json', [task('/data/upload/1/000000.jpg', first, **more)])
        return tmp_path

    return write_one


def sample(root):
    annotated, notes = read(label_studio, root)
    ((only,),) = annotated.splits.values()
    return only, notes


def write_splits(pictures, root, to_task):
    for split in ('train', 'val'):
        mine = [each for each in pictures if each.split == split]
        for each in mine:
            each.copy(root / 'images' / split)
        write(root / f'{split}.json', list(itertools.starmap(to_task, enumerate(mine))))


def full(position, picture):
    return task(
        f'/data/local-files/?d=images/{picture.split}/{picture.path.name}',
        annotation(*regions_of(picture)),
        id=position,
    )


def old(position, picture):
    whole = full(position, picture)
    whole['completions'] = whole.pop('annotations')
    return whole


def minimal(position, picture):
    shapes = [each['value'] | SIZE for each in regions_of(picture)]
    image = f'http://localhost:8080/data/upload/1/0a1b2c3d-{picture.path.name}?token=1'
    return dict(image=image, id=position, label=shapes, annotator=1, annotation_id=3)


@pytest.mark.parametrize('to_task', [full, old, minimal])
def test_forms_give_the_known_objects(pictures, tmp_path, to_task):
    write_splits(pictures, tmp_path, to_task)
    annotated, notes = read(label_studio, tmp_path)
    assert found(annotated) == known(pictures)
    assert annotated.classes == tuple(
        sorted({shape.label for each in pictures for shape in each.shapes})
    )
    assert notes == ''


def test_names_of_files_divide_too(pictures, tmp_path):
    for each in pictures[2:4]:
        each.copy(tmp_path / 'images')
        write(tmp_path / f'{each.split}.json', [minimal(1, each)])
    assert found(read(label_studio, tmp_path)[0]) == known(pictures[2:4])


def test_one_file_is_not_divided(pictures, tmp_path):
    for each in pictures[:3]:
        each.copy(tmp_path / 'images')
    write(tmp_path / 'export.json', [full(*pair) for pair in enumerate(pictures[:3])])
    assert found(read(label_studio, tmp_path)[0]) == known(pictures[:3], 'all')


@pytest.mark.parametrize(
    'name',
    [
        '/data/upload/1/000000.jpg',
        '/data/upload/1/1a2b3c4d-000000.jpg',
        'data\\upload\\000000.jpg',
        '/data/local-files/?d=some%20where/000000.jpg',
        '/data/local-files/?d=C:\\pictures\\000000.jpg',
        's3://bucket/folder/000000.jpg',
        'https://example.com/a/000000.jpg?X-Amz-Signature=1/2.jpg#top',
        '/data/upload/1/000000.png',
    ],
)
def test_image_is_found_by_any_name(one, pictures, tmp_path, name):
    root = one(box())
    if name.endswith('.png'):
        (root / '000000.jpg').rename(root / '000000.png')
    write(root / 'export.json', [task(name, annotation(box()))])
    assert sample(root)[0].image.stem == '000000'


def test_image_that_keeps_the_letters_of_its_upload_is_found(one):
    root = one(box())
    (root / '000000.jpg').rename(root / '1a2b3c4d-000000.jpg')
    write(root / 'export.json', [task('/data/upload/1/1a2b3c4d-000000.jpg', annotation(box()))])
    assert sample(root)[0].image.name == '1a2b3c4d-000000.jpg'


def test_image_under_another_key_is_found(one):
    data = dict(photo='/data/upload/1/000000.jpg', text='a cat', number=3)
    assert single(label_studio, one(box(), data=data))[0].box == BOX_IN_PIXELS


def test_recognises_only_its_own_form(pictures, tmp_path):
    write_splits(pictures, tmp_path / 'full', full)
    write_splits(pictures, tmp_path / 'minimal', minimal)
    for form in ('full', 'minimal'):
        assert 'train.json, val.json' in label_studio.recognise(Folder(tmp_path / form))
    others = tmp_path / 'others'
    write(others / 'coco.json', dict(images=[], annotations=[], categories=[]))
    write(others / 'results.json', [dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=1)])
    write(others / 'create_ml.json', [dict(image='1.jpg', annotations=[dict(label='cat')])])
    assert label_studio.recognise(Folder(others)) is None


def test_box_in_percent_of_both_sides(one):
    root = one(box() | dict(original_width=128, original_height=64))
    each, _ = single(label_studio, root)
    assert each.box == pytest.approx((12.8, 12.8, 38.4, 25.6))
    assert not each.has_mask
    assert sample(root)[0].size == (128, 64)


def test_turned_box_is_kept_as_polygon_with_a_note(one):
    """Clockwise around its upper left corner."""
    each, notes = single(label_studio, one(box(rotation=30)))
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    expected = (12.8, 25.6, 12.8 + 38.4 * cos, 25.6 + 38.4 * sin)
    assert each.polygons[0][:4] == pytest.approx(expected)
    assert 'is turned' in notes


def test_box_without_a_rotation(one):
    assert single(label_studio, one(box(rotation=None)))[0].box == BOX_IN_PIXELS


def test_box_that_is_turned_by_right_angles_stays_a_box(one):
    each, notes = single(label_studio, one(box(x=60, rotation=90)))
    assert each.box == pytest.approx((76.8 - 51.2, 25.6, 51.2, 38.4))
    assert notes == ''


def test_ellipse(one):
    value = dict(x=50, y=40, radiusX=20, radiusY=10, rotation=0, ellipselabels=['cat'])
    each, _ = single(label_studio, one(region('ellipselabels', value)))
    assert each.box == pytest.approx((38.4, 38.4, 51.2, 25.6))
    x, y = np.reshape(each.polygons[0], (-1, 2)).T
    assert ((x - 64) / 25.6) ** 2 + ((y - 51.2) / 12.8) ** 2 == pytest.approx(1)


class Packer:
    """Packs words as rle-pack does, into blocks of any of the four sizes."""

    def __init__(self, sizes=(3, 4, 8, 16), word=8):
        self.sizes, self.word = sizes, word

    def number(self, value, bits):
        return format(value, f'0{bits}b')

    def block(self, words):
        """Of equal words, or of any."""
        is_repeated = len(set(words)) == 1
        size = next(i for i, bits in enumerate(self.sizes) if len(words) <= 2**bits)
        head = f'{int(is_repeated)}{size:02b}{self.number(len(words) - 1, self.sizes[size])}'
        kept = words[:1] if is_repeated else words
        return head + ''.join(self.number(word, self.word) for word in kept)

    def pack(self, blocks):
        total = sum(map(len, blocks))
        bits = self.number(total, 32) + self.number(self.word - 1, 5)
        bits += ''.join(self.number(size - 1, 4) for size in self.sizes)
        bits += ''.join(map(self.block, blocks))
        bits += '0' * (-len(bits) % 8)
        return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def runs(words):
    """Blocks of equal words, as long as counters can count."""
    for _, group in itertools.groupby(words):
        group = list(group)
        yield from (group[i : i + 2**16] for i in range(0, len(group), 2**16))


def painted(mask, channels=(7, 0, 255), alpha=255):
    """Words of a brush's pixels, with a colour that is transparent outside of the mask too."""
    pixels = np.zeros((*mask.shape, 4), int)
    pixels[90] = (*channels, 0)
    pixels[mask] = (*channels, alpha)
    return pixels.ravel().tolist()


BRUSHES = {
    'runs': lambda words: Packer().pack(list(runs(words))),
    'any_words': lambda words: Packer().pack([words[i : i + 512] for i in range(0, 2**16, 512)]),
    'odd_words': lambda words: Packer((1, 2, 15, 5), 11).pack(
        [words[i : i + 512] for i in range(0, 2**16, 512)]
    ),
    'other_sizes': lambda words: Packer((1, 2, 16, 5), 11).pack(list(runs(words))),
}  # fmt: skip


@pytest.mark.parametrize('pack', BRUSHES.values(), ids=BRUSHES)
@pytest.mark.parametrize('alpha', [255, 1])
def test_brush_has_the_same_pixels(one, pack, alpha):
    value = dict(format='rle', rle=pack(painted(blob(), alpha=alpha)), brushlabels=['cat'])
    each, _ = single(label_studio, one(region('brushlabels', value)))
    assert np.array_equal(bitmap(each), blob())
    assert each.box == (20, 10, 40, 60)


def test_brush_of_an_image_that_is_not_square(one):
    mask = blob(100, 128)
    value = dict(format='rle', rle=BRUSHES['runs'](painted(mask)), brushlabels=['cat'])
    root = one(region('brushlabels', value) | dict(original_height=100))
    assert np.array_equal(bitmap(single(label_studio, root)[0]), mask)


def test_shape_whose_label_stands_apart_is_joined_with_it(one):
    """As ``<Rectangle>`` and ``<Labels>`` give them."""
    place = {key: value for key, value in BOX.items() if key != 'rectanglelabels'}
    shapes = region('rectangle', place), region('labels', place | dict(labels=['dog']))
    each, notes = single(label_studio, one(*shapes))
    assert (each.label, each.box) == ('dog', BOX_IN_PIXELS)
    assert notes == ''


@pytest.mark.parametrize(
    'value',
    [
        BOX,
        dict(points=[[10, 20], [40, 20], [40, 60]]),
        dict(x=25, y=40, radiusX=15, radiusY=20, rotation=0),
    ],
    ids=['box', 'polygon', 'ellipse'],
)
def test_shape_of_any_tag_with_labels_in_the_short_form(one, value):
    value = {key: item for key, item in value.items() if key != 'rectanglelabels'}
    root = one()
    shapes = [value | SIZE | dict(labels=['dog'])]
    write(root / 'export.json', [dict(image='000000.jpg', id=1, tag=shapes)])
    each, _ = single(label_studio, root)
    assert (each.label, each.box) == ('dog', BOX_IN_PIXELS)


def test_first_of_several_labels_is_taken(one):
    assert single(label_studio, one(box(rectanglelabels=['cat', 'pet'])))[0].label == 'cat'


def boxed(label, **more):
    return annotation(box(rectanglelabels=[label]), **more)


@pytest.mark.parametrize(
    'annotations, label',
    [
        ([boxed('new', updated_at='2024-03-01T10:00:00.0Z'), boxed('old')], 'new'),
        ([boxed('old'), boxed('new', updated_at='2024-03-01T10:00:00.0Z')], 'new'),
        (
            [boxed('true', ground_truth=True), boxed('new', updated_at='2025-03-01T10:00:00.0Z')],
            'true',
        ),
        ([boxed('kept'), boxed('skipped', was_cancelled=True, ground_truth=True)], 'kept'),
    ],
    ids=['newest_first', 'newest_last', 'ground_truth', 'cancelled'],
)
def test_one_annotation_of_several_counts(one, annotations, label):
    each, notes = single(label_studio, one(annotations=annotations))
    assert each.label == label
    assert ('has 2 annotations' in notes) == (label != 'kept')


def test_newest_row_of_the_short_form_counts(one):
    root = one()
    rows = [
        dict(image='000000.jpg', id=4, updated_at=f'2024-0{month}', label=[BOX | SIZE | more])
        for month, more in ((2, dict(rectanglelabels=['new'])), (1, {}))
    ]
    write(root / 'export.json', rows)
    each, notes = single(label_studio, root)
    assert each.label == 'new'
    assert 'has 2 annotations' in notes


@pytest.mark.parametrize(
    'more',
    [
        dict(annotations=[]),
        dict(annotations=[], predictions=[dict(result=[box()])]),
        dict(annotations=[annotation(box(), was_cancelled=True)]),
    ],
    ids=['none', 'predictions', 'cancelled'],
)
def test_task_without_an_annotation_is_left_out_with_a_note(one, pictures, more):
    root = one()
    pictures[1].copy(root)
    tasks = [task('000000.jpg', id=7, **more), task('000001.jpg', annotation(box()))]
    write(root / 'export.json', tasks)
    only, notes = sample(root)
    assert only.image.name == '000001.jpg'
    assert 'task 7: has no annotation' in notes


def test_annotation_without_shapes_is_kept(one):
    only, notes = sample(one())
    assert (only.objects, only.size, notes) == ((), None, '')


def test_turned_image_is_left_out_with_a_note(one, pictures):
    root = one()
    pictures[1].copy(root)
    first = task('000000.jpg', annotation(box() | dict(image_rotation=90)), id=7)
    write(root / 'export.json', [first, task('000001.jpg', annotation(box()))])
    only, notes = sample(root)
    assert only.image.name == '000001.jpg'
    assert 'task 7: was turned in Label Studio' in notes


def test_missing_image_is_left_out_with_a_short_note(one):
    root = one()
    name = 'data:image/png;base64,' + base64.b64encode(bytes(9999)).decode()
    tasks = [task(name, annotation(box())), task('000000.jpg', annotation(box()))]
    write(root / 'export.json', tasks)
    _, notes = sample(root)
    assert 'names the image' in notes
    assert len(notes) < 600


@pytest.mark.parametrize(
    'shape, why',
    [
        (region('keypointlabels', dict(x=1, y=2, keypointlabels=['cat'])), 'a keypoint, which'),
        (region('choices', dict(choices=['night'])), "of the type 'choices', expected rectangle"),
        (dict(type='relation', from_id='a', to_id='b'), "of the type 'relation'"),
        (polygon([[1, 2], [3, 4]]), 'a polygon of 2 points'),
        (box(rectanglelabels=[]), 'has no label'),
        (
            region('ellipselabels', dict(x=1, y=1, radiusX=0, radiusY=1, ellipselabels=['cat'])),
            'an ellipse of radius 0',
        ),
        (
            region(
                'brushlabels',
                dict(rle=BRUSHES['runs'](painted(np.zeros((128, 128), bool))), brushlabels=['a']),
            ),
            'a mask without a pixel',
        ),
    ],
    ids=['keypoint', 'choices', 'relation', 'two', 'unlabelled', 'flat', 'empty'],
)
def test_what_is_no_object_is_left_out_with_a_note(one, shape, why):
    each, notes = single(label_studio, one(shape, box()))
    assert each.box == BOX_IN_PIXELS
    assert why in notes
    assert 'export.json: task 1, shape 0: ' in notes


def brush(code, **more):
    return region('brushlabels', dict(format='rle', rle=code, brushlabels=['cat'])) | more


CODE = BRUSHES['runs'](painted(blob()))
BROKEN = {
    'cut_off': (lambda text: text[: len(text) // 2], ['cut off or damaged']),
    'task_of_text': (lambda text: text.replace('[{', '["a", {', 1), ['position 0', "'a'"]),
    'no_image': (dict(data=dict(text='cat')), ['task 1', "'image'", "'cat'"]),
    'two_images': (dict(data=dict(a='1.jpg', b='2.jpg')), ['task 1', "'image'", "'2.jpg'"]),
    'annotations_of_text': (dict(annotations='none'), ['task 1', "'annotations'", "'none'"]),
    'no_result': (dict(annotations=[dict(id=3)]), ['task 1', "'result'", 'None']),
    'shape_of_text': ('cat', ['shape 0', "'cat'"]),
    'no_type': (region(None, BOX), ['shape 0', "'type'", 'None']),
    'no_value': (region('rectanglelabels', None), ['shape 0', "'value'", 'None']),
    'no_place': (box(x=None), ['shape 0', 'x: ', 'number', 'None']),
    'place_of_text': (box(height='tall'), ['height', 'number', "'tall'"]),
    'infinite': (box(width=math.inf), ['width', 'finite', 'inf']),
    'rotation': (box(rotation='left'), ['rotation', 'number', "'left'"]),
    'no_size': (box() | dict(original_width=None), ['original_width', 'number', 'None']),
    'size': (box() | dict(original_height=0), ['above 0', '128x0']),
    'label': (box(rectanglelabels=[7]), ['label', '7']),
    'half_a_letter': (box(rectanglelabels=['\ud83d']), ['label', "'\\ud83d'"]),
    'points': (polygon([1, 2, 3]), ['x and y', 'got 1']),
    'points_of_text': (polygon([[1, 2], [3, 'b'], [4, 5]]), ['number', "'b'"]),
    'radius': (
        region('ellipselabels', dict(x=1, y=1, radiusX=-2, radiusY=1, ellipselabels=['cat'])),
        ['at least 0', '-2.56'],
    ),
    'no_code': (brush(None), ['rle', 'None']),
    'code_of_text': (brush('AAEC'), ['rle', "'AAEC'"]),
    'no_bytes': (brush([1, 256]), ['0 to 255', '[1, 256]']),
    'short_code': (brush(CODE[:-30]), ['cut off', f'{len(CODE) - 30} bytes']),
    'empty_code': (brush([]), ['cut off', '0 bytes']),
    'other_size': (brush(CODE, original_width=64), ['32768 values', '65536']),
    'huge': (brush(CODE, original_width=10**6, original_height=10**6), ['1000000x1000000']),
    'broken_size': (brush(CODE, original_width=128.5), ['whole pixels', '128.5']),
}


@pytest.mark.parametrize('change, words', BROKEN.values(), ids=BROKEN)
def test_broken_file_is_refused_in_a_sentence(one, change, words):
    path = one(box()) / 'export.json'
    if callable(change):
        path.write_text(change(path.read_text()))
    elif isinstance(change, dict) and 'type' not in change:
        one(box(), **change)
    else:
        one(change)
    message = refusal(label_studio, path.parent)
    assert [word for word in [str(path), *words] if word not in message] == []
    assert '\n' not in message
    assert message.endswith('.')


def test_sizes_that_differ_are_refused(one):
    message = refusal(label_studio, one(box(), box() | dict(original_width=256)))
    assert 'one size of the image' in message and '(256.0, 128.0)' in message


def test_image_of_two_tasks_is_refused(one):
    root = one()
    tasks = [task('000000.jpg', annotation(box()), id=number) for number in (3, 8)]
    write(root / 'export.json', tasks)
    message = refusal(label_studio, root)
    assert 'task 3' in message and 'task 8' in message and '000000.jpg' in message


@pytest.mark.parametrize('code, tries', [(CODE[:200], 250), (CODE, 50)], ids=['part', 'whole'])
def test_random_damage_is_refused_or_read(one, code, tries):
    value = dict(x=50, y=40, radiusX=20, radiusY=10, rotation=0, ellipselabels=['cat'])
    triangle = polygon([[10, 20], [40, 20], [40, 60]])
    root = one(box(), triangle, region('ellipselabels', value), brush(code))
    count = drawn_shapes.count_refused(label_studio, root, root / 'export.json', tries)
    assert tries / 4 < count <= tries

"""Reports: numbers against hand-made cases and pycocotools, and the page in a real browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmfocal.evaluation import analyze_detections, analyze_segmentations, write_report
from mmfocal.evaluation.detection import judge
from mmfocal.evaluation.report import text_table
from mmfocal.evaluation.running import analyze
from mmfocal.evaluation.segmentation import count_pixels, intersection_over_union
from mmfocal.utils.errors import UserError

HOSTILE = '<script>alert(1)</script>"\'&'


def thing(box, category=1, score=None, **others):
    return dict(bbox=box, category_id=category, **others) | (
        {} if score is None else {'score': score}
    )


def test_every_kind_of_error_once():
    truths = [
        thing([0, 0, 10, 10]),
        thing([20, 0, 10, 10], 2),
        thing([40, 0, 10, 10]),
        thing([60, 0, 10, 10], 2),
        thing([0, 50, 50, 50], iscrowd=1),
    ]
    found = [
        thing([0, 0, 10, 10], score=0.9),
        thing([0, 0, 10, 9], score=0.8),  # the same object again
        thing([20, 0, 10, 10], score=0.7),  # of class 2
        thing([46, 0, 10, 10], score=0.6),  # IoU 4 / 16
        thing([66, 0, 10, 10], score=0.55),  # IoU 4 / 16, of class 2
        thing([80, 80, 10, 10], score=0.5),
        thing([10, 60, 10, 10], score=0.4),  # inside of a crowd
    ]
    outcome = judge(truths, found, 0.5)
    assert outcome.counts == {
        'correct': 1,
        'duplicate': 1,
        'classification': 1,
        'localization': 1,
        'both': 1,
        'background': 1,
        'missed': 3,
    }
    assert outcome.f1 == 2 / (2 + 8)
    assert outcome.by_class[2, 'missed'] == 2 and outcome.by_class[1, 'missed'] == 1
    assert outcome.pairs == {
        (1, 1): 1,
        (2, 1): 1,
        (1, None): 1,
        (2, None): 1,
        (None, 1): 4,  # the duplicate, localization, both, and background
    }
    assert judge([], [], 0.5).f1 is None
    assert judge(truths[:1], [], 0.5).f1 == 0.0


def test_the_best_fit_is_taken_and_the_higher_score_first():
    truths = [thing([0, 0, 10, 10]), thing([2, 0, 10, 10])]
    found = [thing([2, 0, 10, 10], score=0.4), thing([1, 0, 10, 10], score=0.9)]
    # The one between both fits either; the other still finds one.
    assert judge(truths, found, 0.5).counts == {'correct': 2}
    assert judge(truths, found, 0.9).counts == {'correct': 1, 'localization': 1, 'missed': 1}


@pytest.fixture
def data(tmp_path):
    """Annotations of four images, boxes that miss them more or less, and hostile names."""
    rng = np.random.default_rng(0)
    images, annotations, detections = [], [], []
    for i in range(4):
        name = f'{"<b>" if i == 0 else ""}{i}.png'
        images.append(dict(id=i + 5, file_name=name, height=60, width=80))
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        for _ in range(3):
            x, y, w, h = (int(value) for value in rng.integers(5, 30, 4))
            category = int(rng.integers(1, 3))
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 5,
                    iscrowd=0,
                    area=w * h,
                    segmentation=polygon,
                    **thing([x, y, w, h], category),
                )
            )
            moved = [x + int(rng.integers(-6, 6)), y, w, h]
            detections.append(
                dict(image_id=i + 5, **thing(moved, int(rng.integers(1, 3)), float(rng.random())))
            )
    categories = [dict(id=1, name=HOSTILE), dict(id=2, name='cat')]
    truth = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'found.bbox.json').write_text(json.dumps(detections))
    return tmp_path


def report_of(data, **options):
    predictions = dict(bbox=data / 'found.bbox.json')
    return analyze_detections(data / 'truth.json', data, predictions, **options)


def test_average_precision_is_that_of_pycocotools(data):
    report = report_of(data, images=2)
    with redirect_stdout(None):
        truth = COCO(str(data / 'truth.json'))
        evaluation = COCOeval(truth, truth.loadRes(str(data / 'found.bbox.json')), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    rows = report.tables[0].rows
    assert [row[0] for row in rows] == [HOSTILE, 'cat']
    for column, index in ((2, 0), (3, 1), (4, 2)):
        assert np.mean([row[column] for row in rows]) == pytest.approx(evaluation.stats[index])
    assert 0 < evaluation.stats[0] < 1
    assert sum(row[1] for row in rows) == 12
    # Kinds of errors and confusions count the same detections.
    errors = {row[0]: row[1] for row in report.tables[1].rows}
    shown = sum(
        each['score'] >= 0.3 for each in json.loads((data / 'found.bbox.json').read_text())
    )
    assert sum(errors.values()) - errors['missed'] == shown
    assert errors['correct'] + errors['missed'] == 12
    counts = np.array(report.confusion.counts)
    assert counts[:, :-1].sum() == shown and counts[:-1].sum() == 12
    assert [each.score for each in report.worst] == sorted(each.score for each in report.worst)
    assert len(report.worst) == 2 and report.worst[0].score <= report.worst[1].score


def box_of(rng, side, shift):
    """A box of about this side in an image of 400 pixels, and one that is up to a share aside."""
    x, y = rng.integers(10, 400 - 2 * side, 2)
    w, h = rng.integers(round(0.9 * side), round(1.1 * side), 2)
    moved = [x + rng.uniform(-shift, shift) * w, y, w, h * rng.uniform(0.9, 1.1)]
    return [int(value) for value in (x, y, w, h)], [float(value) for value in moved]


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_each_column_is_its_own_number_of_pycocotools(tmp_path, kind):
    """Thresholds and sizes of objects: six numbers of which no two are alike."""
    rng = np.random.default_rng(1)
    annotations, detections = [], []
    for number in range(72):
        box, moved = box_of(rng, *((22, 0.4), (60, 0.25), (150, 0.15))[number % 3])
        common = dict(image_id=number // 12 + 1, category_id=number % 2 + 1)
        x, y, w, h = box
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        area = dict(area=w * h, segmentation=polygon, iscrowd=0, id=number + 1)
        annotations.append(dict(bbox=box, **common, **area))
        mask = np.zeros((400, 400), np.uint8, order='F')
        x, y, w, h = (round(value) for value in moved)
        mask[y : y + h, x : x + w] = 1
        encoded = masks.encode(mask)
        encoded = dict(encoded, counts=encoded['counts'].decode())
        score = float(rng.random())
        if number % 7:
            detections.append(dict(bbox=moved, segmentation=encoded, score=score, **common))
    images = [dict(id=i, file_name=f'{i}.png', height=400, width=400) for i in range(1, 7)]
    for image in images:
        cv2.imwrite(str(tmp_path / image['file_name']), np.zeros((400, 400, 3), np.uint8))
    categories = [dict(id=1, name='dog'), dict(id=2, name='cat')]
    truth = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    for name in ('bbox', 'segm'):
        (tmp_path / f'{name}.json').write_text(json.dumps(detections))
    files = {name: tmp_path / f'{name}.json' for name in ('bbox', 'segm')}
    report = analyze_detections(tmp_path / 'truth.json', tmp_path, files, images=1)
    with redirect_stdout(None):
        api = COCO(str(tmp_path / 'truth.json'))
        evaluation = COCOeval(api, api.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = evaluation.stats[:6]
    assert np.diff(np.sort(expected)).min() > 0.01, 'a number could stand for another'
    table, word = report.tables[0], dict(bbox='box', segm='mask')[kind]
    names = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
    for name, value in zip(names, expected, strict=True):
        column = table.header.index(f'{word} {name}')
        assert np.mean([row[column] for row in table.rows]) == pytest.approx(value), name
    for name, value in zip(names[:3], expected, strict=False):
        assert dict(report.summary)[f'{word} {name}'] == f'{100 * value:.1f} %'


def test_nothing_found_is_a_report_too(data):
    (data / 'found.bbox.json').write_text('[]')
    report = report_of(data)
    assert dict(report.summary)['box AP'] == '0.0 %'
    assert {row[0]: row[1] for row in report.tables[1].rows}['missed'] == 12


def test_what_does_not_belong_together_is_told(data):
    detections = json.loads((data / 'found.bbox.json').read_text())
    (data / 'found.bbox.json').write_text(json.dumps([dict(detections[0], image_id=99)]))
    with pytest.raises(UserError, match=r'image_id 99.*truth\.json'):
        report_of(data)
    (data / 'found.bbox.json').write_text(json.dumps([dict(detections[0], category_id=9)]))
    with pytest.raises(UserError, match=r'category_id 9.*truth\.json'):
        report_of(data)
    truth = json.loads((data / 'truth.json').read_text())
    (data / 'truth.json').write_text(json.dumps(dict(truth, annotations=[])))
    with pytest.raises(UserError, match=r'truth\.json has no annotations'):
        report_of(data)
    with pytest.raises(UserError, match='mmpretrain'):
        analyze(Config(dict(default_scope='mmpretrain')), data / 'found.json', images=2)


def test_pixels_by_hand(tmp_path):
    truth = np.array([[0, 0, 1], [1, 2, 255]], dtype=np.uint8)
    found = np.array([[0, 1, 1], [1, 0, 2]], dtype=np.uint8)
    counts = count_pixels(truth, found, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    np.testing.assert_allclose(intersection_over_union(counts), [1 / 3, 2 / 3, 0])

    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((2, 3, 3), np.uint8))
    (tmp_path / 'labels').mkdir()
    cv2.imwrite(str(tmp_path / 'labels/a.png'), found + 1)
    options = dict(classes=['x', 'y', 'z'], first_label=1)
    report = analyze_segmentations(
        [(tmp_path / 'a.jpg', lambda: truth)], tmp_path / 'labels', **options
    )
    assert dict(report.summary)['mIoU'] == '33.3 %'
    assert report.tables[0].rows[1] == ['y', 0.4, pytest.approx(2 / 3), 1.0, pytest.approx(2 / 3)]
    assert report.worst[0].score == pytest.approx(1 / 3) and not report.best
    with pytest.raises(UserError, match=r'a\.jpg.*\(4, 3\).*\(2, 3\)'):
        analyze_segmentations(
            [(tmp_path / 'a.jpg', lambda: np.zeros((4, 3)))], tmp_path / 'labels', **options
        )
    with pytest.raises(UserError, match=r'b\.png'):
        analyze_segmentations(
            [(tmp_path / 'b.jpg', lambda: truth)], tmp_path / 'labels', **options
        )


def test_names_of_others_are_text_on_the_page(data):
    page = write_report(report_of(data), data / 'out', f'Title {HOSTILE}').read_text()
    assert HOSTILE not in page and '<b>0.png' not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in page and '&lt;b&gt;0.png' in page
    assert not re.search(r'(src|href)="(?!data:)', page), 'the page needs other files'
    numbers = json.loads((data / 'out/report.json').read_text())
    assert numbers['tables']['Classes'][0]['class'] == HOSTILE
    assert HOSTILE in text_table(report_of(data).tables[0])


CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
PROBE = """
<script>
window.errors = [];
window.addEventListener('error', event => window.errors.push(String(event.message)));
document.addEventListener(
  'securitypolicyviolation', event => window.errors.push(event.blockedURI));
window.addEventListener('load', () => {
  const order = () => [...document.querySelectorAll('table.sortable')[1].tBodies[0].rows]
    .map(row => row.children[1].textContent);
  document.querySelectorAll('table.sortable')[1].querySelectorAll('button')[1].click();
  const sorted = order();
  const images = [...document.querySelectorAll('main img')];
  document.querySelector('.pair button').click();
  document.body.dataset.seen = JSON.stringify({
    errors: window.errors,
    requests: performance.getEntriesByType('resource').map(each => each.name)
      .filter(name => !name.startsWith('data:')),
    images: images.map(each => each.naturalWidth),
    sorted,
    dialog: document.querySelector('dialog').open,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    bold: document.querySelectorAll('main b, main script').length,
  });
});
</script>
"""


@pytest.mark.skipif(
    not CHROMIUM and not os.environ.get('MMFOCAL_REQUIRE_BROWSER'), reason='there is no Chromium'
)
@pytest.mark.parametrize('width', [1400, 500])
def test_page_works_in_a_browser(data, width):
    report = report_of(data, images=3)
    page = write_report(report, data / 'out', 'A report')
    # The same page, with a script in front that looks at it.
    page.write_text(page.read_text().replace('<style>', PROBE + '<style>', 1))
    command = [
        *(CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic'),
        *('--no-first-run', '--disable-background-networking', '--disable-component-update'),
        *('--disable-sync', f'--user-data-dir={data / "profile"}', f'--window-size={width},1200'),
    ]
    done = subprocess.run(
        [*command, '--dump-dom', '--virtual-time-budget=5000', page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-2000:]
    seen = json.loads(seen[1].replace('&quot;', '"'))
    assert seen['errors'] == [] and seen['requests'] == []
    assert len(seen['images']) == 2 * (3 + 1) and min(seen['images']) > 100
    numbers = [int(number) for number in seen['sorted']]
    assert numbers == sorted(numbers, reverse=True)
    assert seen['dialog'] and not seen['wide']

    shot = data / 'shot.png'
    subprocess.run([*command, f'--screenshot={shot}', page.as_uri()], check=True, timeout=120)
    pixels = cv2.imread(str(shot))
    assert pixels.shape[1] == width and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500


def test_tool_from_predictions_of_a_test(data):
    (data / 'config.py').write_text(f"""
default_scope = 'mmdet'
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root='{data}', ann_file='truth.json', data_prefix=dict(img=''),
    metainfo=dict(classes=({HOSTILE!r}, 'cat'))))
test_evaluator = dict(type='CocoMetric', ann_file='{data}/truth.json')
""")
    (data / 'c.pth').touch()
    tool = Path(__file__).parents[1] / 'tools/analyze_results.py'
    done = subprocess.run(
        [
            *(sys.executable, tool, 'config.py', 'c.pth', '--predictions', 'found.json'),
            *('--out', 'report', '--images', '2', '--score-thr', '0.1'),
        ],
        cwd=data,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'localization' in done.stdout and 'Wrote report/report.html' in done.stdout
    numbers = json.loads((data / 'report/report.json').read_text())
    assert numbers['facts']['config'] == 'config.py' and len(numbers['worst']) == 2

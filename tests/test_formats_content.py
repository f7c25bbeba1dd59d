"""Finding the image that an annotation names."""

import pytest
from format_cases import written

from mmfocal.datasets.formats.content import Folder

SIZE = (16, 16)


@pytest.mark.parametrize(
    'name, near, split, expected',
    [
        ('1.png', 'train/labels', None, 'train/images/1.png'),
        ('images/1.png', None, 'val', 'val/images/1.png'),
        ('1.png', None, None, None),  # several fit
        ('1.png', 'train/images', 'val', 'train/images/1.png'),  # beside the annotations
        ('C:\\data\\val\\images\\1.png', None, None, 'val/images/1.png'),
        ('https://x.org/val/images/1.png?size=3', 'train', None, 'val/images/1.png'),
        ('val%2Fimages%2F1', None, None, 'val/images/1.png'),
        ('/other/images/1.png', 'val/labels', None, 'val/images/1.png'),
        ('more/1.png', 'train/images', None, 'more/1.png'),
        ('2.PNG', None, None, '2.png'),
        ('a%201.png', None, None, 'a%201.png'),
        ('../../1.png', 'train/images', 'train', 'train/images/1.png'),
        ('3.png', None, None, None),
        ('', None, None, None),
        ('..', None, None, None),
    ],
)
def test_images_are_found_by_the_last_parts_of_a_name(name, near, split, expected, tmp_path):
    places = ('train/images/1.png', 'val/images/1.png', 'more/1.png', '2.png', 'a%201.png')
    folder = Folder(written(tmp_path / 'all', dict.fromkeys(places, SIZE)))
    written(tmp_path, {'3.png': SIZE, '1.png': SIZE})
    found = folder.find_image(name, near and folder.root / near, split)
    assert (found and folder.relative(found)) == expected


def test_images_of_one_name_in_many_folders_are_not_all_compared(tmp_path, monkeypatch):
    ranked, rank = [], Folder._rank
    monkeypatch.setattr(
        Folder, '_rank', staticmethod(lambda *args: ranked.append(1) or rank(*args))
    )
    folder = Folder(tmp_path)
    folder.images = [tmp_path / f's{i}/images/{j}.png' for i in range(100) for j in range(5)]
    for path in folder.images:
        assert folder.find_image(f'/elsewhere/{path.relative_to(tmp_path)}') == path
    assert len(ranked) == len(folder.images)

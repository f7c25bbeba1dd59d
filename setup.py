"""Packaging of mmfocal. Installation with all it needs: see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding='utf-8')


def pins(path: str) -> list[str]:
    """Requirements of a file, without comments and options."""
    lines = (line.partition('#')[0].strip() for line in read(path).splitlines())
    return [line for line in lines if line and not line.startswith('-')]


def links_for_an_index(text: str) -> str:
    """README.md as an index shows it, where links into the repository lead nowhere.

    They become addresses, or, as long as the repository has none, words; images are left out then,
    with the paragraph below, their caption.
    """
    if not URL:
        text = re.sub(r'^!\[.+?\n\n.+?\n\n', '', text, flags=re.DOTALL | re.MULTILINE)
        return re.sub(r'\[([^\]]*)\]\((?!\w+:)[^)\s]+\)', r'\1', text)
    text = re.sub(r'(!\[[^\]]*\]\()(?!\w+:)', rf'\1{URL}/raw/v{version}/', text)
    return re.sub(r'(\[[^\]]*\]\()(?!\w+:)', rf'\1{URL}/blob/v{version}/', text)


# Of the repository, once it has one, as https://github.com/OWNER/mmfocal.
URL = ''
version = re.search(r"'(.+)'", read('mmfocal/version.py')).group(1)
official = {pin.partition('==')[0]: pin for pin in pins('requirements/official.txt')}
engine = [official['mmengine'], official['mmcv'], 'setuptools<81']
export = ['onnx', 'onnxruntime', 'onnxscript']

setup(
    name='mmfocal',
    version=version,
    description='Focal Transformer for MMDetection 3.x and MMSegmentation 1.x',
    author='mmfocal contributors',
    url=URL or None,
    long_description=links_for_an_index(read('README.md')),
    long_description_content_type='text/markdown',
    license='MIT',
    keywords='Focal Transformer, object detection, instance segmentation, semantic segmentation',
    classifiers=[
        'Development Status :: ' + ('4 - Beta' if 'rc' in version else '5 - Production/Stable'),
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmfocal', 'mmfocal.*']),
    # Where OpenMMLab's packages carry theirs: links in a checkout, files in a wheel.
    package_data={
        'mmfocal': [
            # No `**`, which setuptools below 62.3 takes for `*`, without a word.
            *('.mim/configs/*/*.py', '.mim/configs/*/*/*.py', '.mim/configs/*.y*ml'),
            *('.mim/tools/*.py', '.mim/tools/*.sh', '.mim/tools/*.sbatch'),
            '.mim/model-index.yml',
            'evaluation/*.jinja',
            'visualization/*.jinja',
        ]
    },
    entry_points={'console_scripts': ['mmfocal = mmfocal.__main__:main']},
    python_requires='>=3.11,<3.15',
    # torch and one of two stacks with the same import names: which one is the user's choice.
    install_requires=[
        'torch>=2.6',
        'numpy',
        'opencv-python',
        'pillow',
        'pycocotools',
        'matplotlib',
        'jinja2',
        'tqdm',
        'pyyaml',
        'yapf',
    ],
    extras_require={
        'mmdet': [*engine, official['mmdet'], 'scipy'],
        'mmseg': [*engine, official['mmsegmentation'], official['ftfy'], official['regex']],
        # mmpretrain imports torchvision, which has to fit PyTorch, without asking for it.
        'mmpretrain': [*engine, official['mmpretrain'], 'torchvision'],
        'onedl': [*pins('requirements/onedl.txt'), 'torchvision'],
        # Whatever is on OpenMMLab's stack, with which the forks cannot be installed.
        'all': [*engine, *official.values(), 'scipy', 'torchvision', 'safetensors', *export],
        'logs': ['tensorboard', 'wandb', 'mlflow'],
        'triton': ['triton>=3.6'],
        'safetensors': ['safetensors'],
        'hub': ['huggingface_hub', 'safetensors'],
        'export': export,
        'dev': pins('requirements/dev.txt'),
    },
)

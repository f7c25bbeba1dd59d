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


official = {pin.partition('==')[0]: pin for pin in pins('requirements/official.txt')}
engine = [official['mmengine'], official['mmcv'], 'setuptools<81']

setup(
    name='mmfocal',
    version=re.search(r"'(.+)'", read('mmfocal/version.py')).group(1),
    description='Focal Transformer for MMDetection 3.x and MMSegmentation 1.x',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='MIT',
    keywords='Focal Transformer, object detection, instance segmentation, semantic segmentation',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmfocal', 'mmfocal.*']),
    # Where OpenMMLab's packages carry theirs: links in a checkout, files in a wheel.
    package_data={
        'mmfocal': [
            *(
                '.mim/configs/**/*.py',
                '.mim/configs/*.y*ml',
                '.mim/tools/*.py',
                '.mim/tools/*.sh',
                '.mim/tools/*.sbatch',
            ),
            '.mim/model-index.yml',
            'evaluation/*.jinja',
            'visualization/*.jinja',
        ]
    },
    entry_points={'console_scripts': ['mmfocal = mmfocal.__main__:main']},
    python_requires='>=3.10,<3.13',
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
        'mmdet': [*engine, official['mmdet']],
        'mmseg': [*engine, official['mmsegmentation'], official['ftfy'], official['regex']],
        # mmpretrain imports torchvision, which has to fit PyTorch, without asking for it.
        'mmpretrain': [*engine, official['mmpretrain'], 'torchvision'],
        'onedl': pins('requirements/onedl.txt'),
        'triton': ['triton>=3.6'],
        'safetensors': ['safetensors'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'dev': pins('requirements/dev.txt'),
    },
)

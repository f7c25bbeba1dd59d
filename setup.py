"""Packaging of mmfocal. Installation with all it needs: see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"'(.+)'", (ROOT / 'mmfocal/version.py').read_text()).group(1)

setup(
    name='mmfocal',
    version=VERSION,
    description='Focal Transformer for MMDetection 3.x and MMSegmentation 1.x',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='MIT',
    packages=find_packages(include=['mmfocal', 'mmfocal.*']),
    python_requires='>=3.10,<3.13',
    # torch and one of two stacks with the same import names: which one is the user's choice.
    install_requires=['torch>=2.1', 'numpy', 'opencv-python', 'pycocotools', 'matplotlib'],
    extras_require={
        'official': ['mmcv==2.1.0', 'mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2'],
        'onedl': [
            'onedl-mmcv==2.3.6',
            'onedl-mmengine==0.10.12',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
        ],
        'safetensors': ['safetensors'],
    },
)

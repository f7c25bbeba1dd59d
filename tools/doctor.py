"""``mmfocal doctor``, also where `import mmfocal` fails."""

import os

os.environ['MMFOCAL_WITHOUT_ENGINE'] = '1'

from mmfocal.cli import run

if __name__ == '__main__':
    run('doctor')

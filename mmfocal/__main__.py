"""``python -m mmfocal TOOL ...`` and the command ``mmfocal TOOL ...``."""

from mmfocal.cli import main

if __name__ == '__main__':
    main()

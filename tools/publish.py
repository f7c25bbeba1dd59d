"""``mmfocal publish``, for launchers that take a file."""

from mmfocal.cli import run

if __name__ == '__main__':
    run('publish')

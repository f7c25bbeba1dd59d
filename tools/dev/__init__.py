"""What maintainers of mmfocal run, in a checkout: ``python -m tools.dev.NAME``."""

from pathlib import Path

import mmfocal  # noqa: F401  before PyTorch, whose threads it gives their manners

ROOT = Path(__file__).resolve().parents[2]

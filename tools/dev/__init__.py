"""What maintainers of mmfocal run, in a checkout: ``python -m tools.dev.NAME``."""

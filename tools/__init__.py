"""Tools; a package so that ``python -m tools.dev.NAME`` finds these and no others."""

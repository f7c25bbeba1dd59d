"""What ``tools/dev/benchmark.py`` measures, and how."""

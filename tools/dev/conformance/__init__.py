"""Conformance with stock mmengine: configs of mmdet and mmseg run here as they do there.

``python -m tools.dev.conformance`` takes configs out of the wheels of mmdet and mmseg
(:mod:`.cases`), makes each small (:mod:`.shrinking`), and runs it twice on drawn data
(:mod:`.data`): in mmengine's ``Runner``, and by mmfocal's :func:`~mmfocal.engine.train`. Both have
the same seed. What is recorded of both (:mod:`.runs`) is compared (:mod:`.comparison`), exactly.
"""

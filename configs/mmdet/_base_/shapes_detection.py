# The embedded data set without masks.
_base_ = 'shapes_instance.py'

val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

"""Pictures of keys, attention, training curves and predictions."""

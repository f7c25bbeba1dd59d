"""Pictures of keys, training curves and predictions."""

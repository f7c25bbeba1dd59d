"""Figures of keys and attention, and images with predictions."""

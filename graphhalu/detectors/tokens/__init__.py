"""Detectors that score every token of an answer."""

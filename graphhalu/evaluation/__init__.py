"""Evaluation: metrics, intervals, and the comparison of detectors."""

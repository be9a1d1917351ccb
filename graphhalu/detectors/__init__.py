"""Detectors: one contract for scalars, probes and graph networks."""

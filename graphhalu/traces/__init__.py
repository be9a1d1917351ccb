"""Traces: what a model computed on prompt and answer, and the store that keeps it."""

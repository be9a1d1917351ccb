"""Graphs: each layer of a trace as a token graph."""

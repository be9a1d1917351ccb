"""Studies: one question each, from measurement to the paper's figure.

A study uses everything to its left (models, extraction, features, heads, evaluation) and adds
only what is its own: what is measured of a prompt, and which hypotheses are tested on it. Each
has a folder or modules of its own here, its figures in ``report/`` and a command in ``cli/``.
"""

"""Extraction: beam search, replay, capture inside the forward pass, and the run."""

"""Roles of single attention heads, measured: retrieval, reasoning, patterns; and ablation."""

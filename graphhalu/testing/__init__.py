"""Tools for testing plug-ins: tiny models, planted traces, contracts, strategies."""

"""A detector of hallucinations as a plug-in of graphhalu."""

"""Sink mass against hallucination: measurement, analysis, and the result that figures draw.

``measure`` runs a model over the prompts of a data set (``passes``), or reads a trace store, and writes
files of records (``records``). ``analyze`` tests four hypotheses on them: H1, the distribution is
shifted, H2, the scalar predicts, and H4, single heads differ (``effects``); H3, cross-fitted models do
(``probes``). Everything that was found is one JSON file.
"""

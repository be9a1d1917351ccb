"""Sink mass against hallucination: measurement, analysis, and the result that figures draw.

``measure`` runs a model over the prompts of a data set, ``stored`` reads a trace store; both write
files of records (``records``). ``analyze`` tests four hypotheses on them: H1, the distribution is
shifted, H2, the scalar predicts, and H4, single heads differ (``effects``); H3, cross-fitted models do
(``probes``). ``result`` is everything that was found, as one JSON file.
"""

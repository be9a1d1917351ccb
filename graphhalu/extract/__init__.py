"""Extraction: ``Question -> Prompt -> Generation -> Trace``, from questions to a trace store.

``settings`` says what is done; ``prompts`` shows a question to a model; ``generate`` and ``decode``
search for answers; ``replay`` runs prompt and answer once more through ``forward``, while
``capture`` (or ``hooks``, for other families) shows it the attention; ``extraction`` joins these
steps and does batches of questions, ``run`` is the whole run. ``cost`` estimates one without a
model.
"""

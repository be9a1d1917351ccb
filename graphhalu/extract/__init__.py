"""Extraction: ``Question -> Prompt -> Generation -> Trace``, from questions to a trace store.

``settings`` says what is done; ``prompts`` shows a question to a model; ``replay`` runs each prompt
once through ``forward``, while ``capture`` (or ``hooks``, for other families) shows it the attention;
``generate`` and ``decode`` search for answers behind it, and ``replay`` runs them there. ``extraction``
joins these steps, ``worker`` does batches of questions and commits them, ``run`` is the whole run.
``cost`` estimates one without a model.
"""

"""Sink mass against hallucination: measure, analyse, and what the figures are drawn from.

``records``      measured sink mass in memory
``files``        the published file format of it, read and written
``observer``     sums the attention to the first tokens while a model runs
``posing``       questions of a data set as prompts whose answer needs no generation
``measure``      one model on one data set, with ablations, resumable
``stored``       the same records from a trace store
``effects``      H1: is the distribution shifted?
``probes``       cross-fitted models, every choice inside nested grouped folds
``prediction``   H2 and H3: what sink mass predicts, alone and beyond entropy
``heads``        H4: which heads differ, how surely, and whether they are induction heads
``across``       several runs side by side: model size, task, chat, window
``findings``     what was found in one run
``result``       everything that was found, as one JSON file
``analyze``      runs to result
"""

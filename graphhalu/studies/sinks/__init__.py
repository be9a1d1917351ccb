"""Sink mass against hallucination: measurement, analysis, and the result that figures draw.

``records``            measured sink mass in memory
``files``              the published file format of it, read and written
``observer``           sums the attention to the first tokens while a model runs
``prompt_formatting``  questions of a data set as prompts whose answer needs no generation
``passes``             batches through the model, and the journal of what they gave
``measure``            one model on one data set, with ablations, resumable
``stored``             the same records from a trace store
``effects``            H1: is the distribution shifted? H2: what does the scalar predict?
``probes``             H3: cross-fitted models, every choice inside nested grouped folds
``heads``              H4: which heads differ, how surely, and whether they are induction heads
``comparisons``        several runs side by side: model size, task, chat, window
``analyze``            runs to a result
``result``             everything that was found, as one JSON file
"""

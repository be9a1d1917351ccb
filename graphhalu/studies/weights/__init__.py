"""Weight profiles against the running model.

``measure_store`` takes from a trace store what attention, values and blocks did; ``validate``
holds every static quantity against its counterpart and gives a verdict; ``head_tables`` makes
tables of heads of a profile, which graphs and detectors read.
"""

"""Features in, rankings out: distances, re-ranking, metrics, ensembles and the answer file.

Arrays in, arrays out; this room knows no model and no configuration.
"""

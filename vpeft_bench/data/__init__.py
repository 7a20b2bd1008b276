"""Data sets: their configuration, their readers and the loader that feeds the training loop.

``schema`` and ``listing`` need no torch; ``dataset`` opens a data set from its lists; ``loading``
turns a split into batches. One file per benchmark family holds its reader.
"""

"""Kinds of tasks: one folder each, found by existing.

``kind.py`` says all that a kind decides (:class:`vpeft_bench.tasks.kind.TaskKind`) and is imported
without torch; ``module.py`` is its LightningModule. What kinds share lies beside the folders. No
task knows a method.
"""

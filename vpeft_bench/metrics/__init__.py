"""What dense predictions are scored with; all of it in percent, the headline first.

A metric knows tensors and nothing of models, data sets or tasks.
"""

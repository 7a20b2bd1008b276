"""A method on a model: attached, stacked, stored and taken off, without the harness."""

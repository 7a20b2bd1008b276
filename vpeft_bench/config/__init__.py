"""The configuration of a run: its schema, its sources, and what identifies it."""

"""PEFT methods: one file each. ``attach`` in :mod:`vpeft_bench.attachment` puts one on a timm model."""

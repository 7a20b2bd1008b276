"""PEFT methods: one file each; :func:`vpeft_bench.attach` puts one on a timm model."""

"""PEFT methods: one file each; :func:`vpeft_bench.attachment.attach` puts one on a timm model."""

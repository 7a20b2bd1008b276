"""How the embedded demo backbone was pretrained; run by ``scripts/pretrain_demo_backbone.py``."""

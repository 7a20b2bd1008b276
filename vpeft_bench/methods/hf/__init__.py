"""Methods of the peft library, under the prefix ``hf/``."""

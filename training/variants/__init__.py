"""Smaller graphs made of the exported one: int8 for CPUs, fp16 for GPUs."""

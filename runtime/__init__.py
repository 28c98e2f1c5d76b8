"""Kernel source to callable: the only place that knows torch."""

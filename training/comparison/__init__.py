"""Comparisons of several recipes on the same photos: runs, tables and the verdict."""

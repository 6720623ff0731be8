"""Reproducible measurements: each has a question, a seed, a command and a result, lost ones too."""

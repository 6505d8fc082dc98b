"""Metrics as pure functions: strings and numbers in, numbers out; no torch, no Java, no files."""

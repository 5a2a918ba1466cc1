"""Training: one engine, a file for each stage, and the data they learn from."""

"""Data to train on: open picture sets, captions, composition, degradation, loading."""

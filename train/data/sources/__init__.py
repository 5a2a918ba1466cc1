"""Captioned pictures of users, by number: folders, tar shards, Parquet, Hugging Face datasets."""

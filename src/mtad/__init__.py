"""mtad: multi-token joint decoding for large language models."""

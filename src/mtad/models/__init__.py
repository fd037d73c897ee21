"""Token ids become logits: runners over a static slot cache with tree attention."""

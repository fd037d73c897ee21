"""Methods side by side on the same prompts, seeds and engine."""

"""An OpenAI-compatible server over a session of continuous batching."""

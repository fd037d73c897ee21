"""What the models' calls read from memory at least."""

from mtad.models.traffic import CallTraffic, call_traffic

__all__ = ["CallTraffic", "call_traffic"]

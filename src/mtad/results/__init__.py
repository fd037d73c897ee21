"""Run records: provenance, what was measured, intervals; needs no torch."""

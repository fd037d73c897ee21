"""Run records become tables, figures and one page."""

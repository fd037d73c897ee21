"""Words on a command line become a config and one call."""

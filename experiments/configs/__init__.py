"""One config file per run."""

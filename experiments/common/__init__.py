"""What every wing may use: errors, files, processes, progress, provenance."""

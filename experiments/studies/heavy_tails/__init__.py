"""Where heavy tails, spikes and bad workers are real: one module for each workload."""

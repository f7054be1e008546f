"""Speed, memory and compile time, as ratios from interleaved runs."""

"""A search for update rules: tasks, fitness, proposals, archive and report."""

"""Where blocks run: this process, worker processes, clusters. Knows nothing of expressions."""

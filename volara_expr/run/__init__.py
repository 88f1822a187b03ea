"""Running plans: evaluation of a block, jobs, ledgers, progress."""

"""Window declarations, keyed state and the kernel that all executions share."""

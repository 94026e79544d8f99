"""The worker: owner of one log partition and of the window state that follows from it."""

"""The only part of the engine that starts or talks to Ray core: session, workers, jobs."""

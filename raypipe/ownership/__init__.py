"""Which worker owns which key, and what the others are told of an event."""

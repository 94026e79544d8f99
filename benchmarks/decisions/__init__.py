"""Parts of the suites that ask a running system for decisions: ``decide`` and ``availability``."""

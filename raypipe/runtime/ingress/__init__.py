"""Ray Serve's HAProxy mode, private to one session on one machine."""

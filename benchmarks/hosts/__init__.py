"""Several hosts on one Linux machine: each has namespaces, a disk and an SSH server of its own."""

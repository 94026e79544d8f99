"""Launch files and credentials of a cluster: made and checked on this machine, without a cloud."""

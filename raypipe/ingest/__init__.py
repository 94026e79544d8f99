"""Bulk requests: bytes of many events to rows that may enter the log, and rows refused with why."""

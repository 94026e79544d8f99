"""The durable partitioned event log: one port and its adapters."""

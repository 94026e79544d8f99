"""Who calls: tenants, their API keys and what a key may do."""

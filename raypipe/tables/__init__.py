"""Business counters by minute: tumbling windows with a watermark, for dashboards."""

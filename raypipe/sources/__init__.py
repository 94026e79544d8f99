"""Where bulk events come from, as batches that can be sent twice."""

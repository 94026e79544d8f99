"""The distributed event log: a Kafka topic, and beside it what a writer knows about its ids."""

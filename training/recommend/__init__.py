"""Recommendations: interactions from events, retrievers behind one port, tables, evaluation."""

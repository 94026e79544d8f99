"""What the suite ``experiments`` repeats thousands of times over a simulated world."""

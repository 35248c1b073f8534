"""What a call is expected to cost, and what it did cost."""

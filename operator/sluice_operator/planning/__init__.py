"""What there is to do in a namespace, as a function of what was found: pure, without I/O, clock or cluster."""

"""How every document is declared and read: types with bounds, YAML with nothing guessed, durations."""

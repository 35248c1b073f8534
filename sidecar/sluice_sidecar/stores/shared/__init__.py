"""One quota for many gates: buckets on Redis or Valkey, and what is done while these cannot be reached."""

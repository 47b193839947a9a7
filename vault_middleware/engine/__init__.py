"""What the manager is made of: the breaker, the session, the leases and the reader, over vault, cache and renewal."""

"""The renewer's thread, and the pure timing it follows."""

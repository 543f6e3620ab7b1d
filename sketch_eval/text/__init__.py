"""Text that every machine has: the standard library's sources, and generated documents that ask for a planted fact."""

"""A run from its first round to its last file, whatever computes it: actors of Ray's, or this process."""

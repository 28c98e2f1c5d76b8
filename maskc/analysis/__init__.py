"""Checked mask to block plan, by reading the mask: truth over tiles, never pair by pair."""

"""Chunks to commands of one arm: planner, scheduler, safety gate, motion guard."""

"""Simulated plants, scripted demonstrators, collecting with them and evaluating on them."""

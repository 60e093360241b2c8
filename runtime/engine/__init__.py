"""Refinement steps of many requests in one batch, within their budgets."""

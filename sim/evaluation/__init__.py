"""Episodes under a policy, what is noted about them, and the pages and films made of it."""

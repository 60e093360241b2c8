"""Training that goes on with episodes which the policy itself plays in a simulator."""

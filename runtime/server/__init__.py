"""The process around the engine: requests, quota, metrics, recording, exchange of bundles."""

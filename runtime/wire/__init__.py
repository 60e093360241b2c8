"""What client and server both speak: frames, headers, bounds, keys."""

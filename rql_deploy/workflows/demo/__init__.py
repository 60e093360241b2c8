"""What `rql-deploy demo` does."""

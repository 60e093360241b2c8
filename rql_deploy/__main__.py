"""`python -m rql_deploy`, the same as the `rql-deploy` command."""

from rql_deploy.cli import main

if __name__ == "__main__":
    main()

"""`python -m actprune`."""

from actprune.cli.main import main

main()

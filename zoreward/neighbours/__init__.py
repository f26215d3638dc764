"""What zoreward uses of other libraries without their promise: one module for each library, so that a release of theirs
is answered in one place. Each function says what is private about it, and has a contract in tests/test_neighbours.py.

`releases` says which releases are taken. Importing these modules imports none of the libraries, but for
`transformers_cache_layer` and `of_typer`.
"""

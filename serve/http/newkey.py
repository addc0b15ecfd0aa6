"""Makes an API key: `python -m jingyin.serve.http.newkey NAME [admin] >> keys.txt`.

The line for the key file goes to standard output, the key itself to standard error, once. A module of its own because
Python warns when it runs one that its package has imported.
"""

import hashlib
import secrets
import sys

_USAGE = "usage: python -m jingyin.serve.http.newkey NAME [admin] >> keys.txt; NAME is one word without #"


def main(arguments: list[str]) -> int:
    """Make a key named by the first argument; return the exit code."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["admin"]) or not _is_name(arguments[0]):
        print(_USAGE, file=sys.stderr)  # noqa: T201
        return 2
    key = secrets.token_urlsafe(32)
    print(key, file=sys.stderr)  # noqa: T201
    print(arguments[0], hashlib.sha256(key.encode()).hexdigest(), *arguments[1:])  # noqa: T201
    return 0


def _is_name(given: str) -> bool:
    """Whether read_keys reads it as it is: it splits at white space, and takes what follows # for a remark."""
    return given.partition("#")[0].split() == [given]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

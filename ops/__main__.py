"""`els`: answers at once what supervisors ask every few seconds, and hands on the rest."""

import sys


def main() -> int:
    """Run `els`; return its exit status."""
    if sys.argv[1:2] == ["health"]:
        from ops import health

        return health.main(sys.argv[2:])
    from ops import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

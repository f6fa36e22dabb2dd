"""`els`: answers at once what supervisors ask every few seconds, and keeps workers small."""

import sys

INTERRUPTED = 130  # as a shell reports Ctrl-C


def main() -> int:
    """Run `els`; return its exit status."""
    try:
        return _main()
    except KeyboardInterrupt:  # while modules are imported: later each command ends by itself
        return INTERRUPTED


def _main() -> int:
    if sys.argv[1:2] == ["health"]:
        from ops.stack import worker_health

        return worker_health.main(sys.argv[2:])
    if sys.argv[1:2] in (["worker"], ["beat"]):
        from ops.stack import celery_command

        celery_command.main(sys.argv[1], sys.argv[2:])
    from ops.cli import main as cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

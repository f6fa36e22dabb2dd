"""A program that sends contents in order, and writes down each that the sender took."""

import sys
from pathlib import Path

from els_client import Sender


def main(url: str, spool: str, log: str, batch_id: str, count: str) -> None:
    with Sender(url, spool=spool) as sender, Path(log).open("a") as taken:
        for number in range(int(count)):
            sent = sender.assign_content(
                batch_id,
                text_storage_id=f"text-{number:05d}",
                file_upload_id=f"file-{number:05d}",
                original_file_name=f"Uppsats {number}.docx",
                file_size_bytes=number,
            )
            taken.write(f"{sent.event_id}\n")
            taken.flush()
        sender.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A sender with the kit: each line of its input is a message; it writes the id once it is taken.

BROKER_URL=redis://… SPOOL=spool.sqlite QUEUE=els python kit_sender.py
"""

import json
import os
import sys

from els_client import Sender

if __name__ == "__main__":
    with Sender(
        os.environ["BROKER_URL"], spool=os.environ["SPOOL"], queue=os.environ["QUEUE"]
    ) as sender:
        for line in sys.stdin:
            message = json.loads(line)
            send = getattr(sender, message["task"].removeprefix("els."))
            print(send(**message["event"]).event_id, flush=True)  # noqa: T201 - for the test
        while sender.flush().messages:  # until the broker has all of them
            pass

"""Looking again and again."""

import time


class HarnessError(Exception):
    """What was asked of the cluster did not come to be."""


def wait(what, most_s, is_so):
    until = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > until:
            raise HarnessError(f"after {most_s} s still not: {what}")
        time.sleep(0.05)

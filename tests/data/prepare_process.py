"""`prepare` in a process of its own, so that it can be killed; the settings are a JSON argument."""

import json
import sys

from prepared import run_prepare

if __name__ == "__main__":
    run_prepare(**json.loads(sys.argv[1]))

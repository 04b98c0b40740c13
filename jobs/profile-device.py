"""`python -m jobs.profile-device`: the command by the name that it has in `hsee profile-device`."""

import sys

from jobs.profile_device import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m vault_middleware.cli``: the same as the command."""

import sys

from . import main

sys.exit(main())

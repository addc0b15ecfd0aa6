"""Very large archives: `jingyin relabel` scores every row, `jingyin campaigns` groups near-copies of flagged messages.

Bounded memory, resumable, exact. The base package doesn't import this folder.
"""

from jingyin.model.errors import need

need("relabelling", "batch", "pyarrow")

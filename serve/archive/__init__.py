"""Very large archives: `jingyin relabel` scores every row, `jingyin campaigns` groups near-copies of flagged messages.

Bounded memory, resumable, exact. The base package imports without any of it.
"""

from jingyin.model.errors import need

need("relabelling", "batch", "pyarrow")

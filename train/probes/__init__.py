"""What a model can do: questions made by programs, and a jail for code that a model wrote.

`asking` puts questions to a run, `recall` makes those about Python's library, `probing` is the
command for one run. `emergence` is that for a ladder: `ladder` asks its checkpoints, `measured`
keeps what they answer, `reading` says whether it came suddenly, `page` and `pictures` show it.
`sandbox` runs a model's code in `jail`.
"""

from .sandbox import Limits, Result, evaluate_code, obstacle

__all__ = ["Limits", "Result", "evaluate_code", "obstacle"]

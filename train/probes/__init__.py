"""What a model can do: questions made by programs, and a jail for code that a model wrote."""

from .sandbox import Limits, Result, evaluate_code, obstacle

__all__ = ["Limits", "Result", "evaluate_code", "obstacle"]

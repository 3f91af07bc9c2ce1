"""Fixtures that any test may ask for."""

from tests.mlflow_server import mlflow_server

__all__ = ["mlflow_server"]

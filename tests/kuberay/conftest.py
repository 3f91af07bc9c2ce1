"""Renderings that tests share."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.kuberay import kustomize_double
from tests.kuberay.objects import Document
from tests.kuberay.rendering import KUBERAY, in_order

Rendered = Callable[[str], list[Document]]


@pytest.fixture(scope="session")
def rendered() -> Rendered:
    """Return the documents of a directory below `kuberay/`; by the double, which a test compares with kubectl."""

    @cache
    def of(directory: str) -> list[Document]:
        return in_order(kustomize_double.build(KUBERAY / directory))

    return of

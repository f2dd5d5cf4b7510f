import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Other tests, and other people, use the same cores."""
    torch.set_num_threads(1)

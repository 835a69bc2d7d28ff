"""What every test file shares."""

import os

import pytest

# Read once, when jax is first imported; child processes inherit it.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


@pytest.fixture
def key():
  import jax  # Only now, so that tests without JAX start at once.

  return jax.random.key(0)

"""Tests of the cells that belong to an image."""

import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.ops.valid_cells import count_cells, valid_cells


def test_count_cells_rounds_up():
  # 64 / 32 = 2, 96 / 32 = 3; 64 / 64 = 1, 96 / 64 = 1.5.
  sizes = jnp.array([64, 96])
  np.testing.assert_array_equal(count_cells(sizes, 5), [2, 3])
  np.testing.assert_array_equal(count_cells(sizes, 6), [1, 2])


def test_valid_cells_are_the_upper_left_corner_of_each_image():
  valid = valid_cells(
    jnp.array([[64, 96], [128, 32], [0, 0]]), {5: (4, 4), 6: (2, 2)}
  )
  assert {level: x.shape for level, x in valid.items()} == {
    5: (3, 4, 4, 1),
    6: (3, 2, 2, 1),
  }
  expected = np.zeros((3, 4, 4), bool)
  expected[0, :2, :3] = expected[1, :4, :1] = True
  np.testing.assert_array_equal(valid[5][..., 0], expected)
  expected = np.zeros((3, 2, 2), bool)
  expected[0, :1, :2] = expected[1, :2, :1] = True
  np.testing.assert_array_equal(valid[6][..., 0], expected)

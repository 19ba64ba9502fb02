"""Scripts that train networks and build data sets: texture_gan, regressor, edit_directions, uv_dataset."""

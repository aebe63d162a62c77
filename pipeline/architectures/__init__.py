"""One file, one network: `build(image_shape, num_classes, *, …) -> keras.Model`."""

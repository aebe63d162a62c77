"""Architectures: one network per file, `build(image_shape, num_classes, *, …) -> keras.Model`."""

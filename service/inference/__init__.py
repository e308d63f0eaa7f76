"""The road of an image, from its bytes to its outputs: admission, decoding, batches, the device."""
